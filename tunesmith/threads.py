"""How the threads of processes that Tunesmith starts wait for each other."""

import os


def thread_environment(num_threads: int | str | None = None) -> dict[str, str]:
    """Variables for a process that computes: training, evaluation or inference. They are read when torch is imported.

    num_threads: threads of one operation (OMP_NUM_THREADS); None keeps what the process inherits.

    OpenMP's threads spin while they wait for each other. If the cores have other work too, such as a training run next
    to a chat, spinning takes the time that the awaited thread needs: a step or a token takes 5 to 20 times as long. So
    threads wait passively after a short spin, which keeps the speed of an otherwise idle machine. A GOMP_SPINCOUNT of
    the user is kept.
    """
    variables = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    return variables if num_threads is None else {"OMP_NUM_THREADS": str(num_threads), **variables}

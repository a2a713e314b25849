"""Evaluation worker: `python -m tunesmith.evaluation.worker JOB_DIR`, in any number, on any machine.

Requires access to the job's directory, model and token indexes under the same paths. LOCAL_RANK selects the GPU. Exit
codes: 0 job done, 1 fault, 2 bad input; error.json has the message.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.errors import ExitCode, TunesmithError
from tunesmith.evaluation.answers import prompt_at
from tunesmith.evaluation.job import Answered, JobPart, read_batches, read_job
from tunesmith.evaluation.score import score_documents
from tunesmith.evaluation.subject import Subject, find_subject
from tunesmith.evaluation.work_queue import Queue
from tunesmith.inference.generate import generate_batch
from tunesmith.modeling.cuda import set_up_cuda
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.rundir.atomic import write_json


def work(
    directory: Path,
    *,
    model: CausalLoss | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_continue: Callable[[], bool] = lambda: True,
) -> None:
    """Process batches until the job is done.

    model: the model of the job, if already in memory; else it is loaded with the first batch. progress: called with
    (batches done, total batches). should_continue: called after every batch. Raises InputError and RunFault like
    loading and scoring.
    """
    job, plan = read_job(directory), read_batches(directory)
    queue = Queue(directory, len(plan))
    subject: Subject | None = None
    indexes: dict[str, TokenIndex] = {}
    for number in queue.pull():
        subject = subject or find_subject(job.model)
        model = model or subject.load()
        part_index, documents = plan[number]
        part = job.parts[part_index]
        index = indexes.setdefault(part.index, TokenIndex.open(Path(part.index)))
        queue.finish(number, _records(part, model, index, documents, subject))
        if progress is not None:
            progress(queue.num_done(), len(plan))
        if not should_continue():
            return


def _records(
    part: JobPart, model: CausalLoss, index: TokenIndex, documents: list[int], subject: Subject
) -> list[dict[str, Any]]:
    if part.kind == "score":
        return [score.as_json() for score in score_documents(model, index, documents, subject.tokenizer)]
    assert part.sampling is not None
    prompts = [prompt_at(index, document, subject.tokenizer) for document in documents]
    answers = generate_batch(
        model.model,
        subject.tokenizer,  # type: ignore[arg-type]  # pyright does not accept a cached_property as a property
        [prompt.tokens for prompt in prompts],
        part.sampling,
        compute_dtype=model.compute_dtype,
    )
    return [
        vars(Answered(prompt.row, prompt.text, prompt.reference, answer.text, answer.stopped, len(answer.tokens)))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Evaluation worker of Tunesmith.")
    parser.add_argument("job_dir", type=Path)
    parser.add_argument("--parent", type=int, help="pid of the parent: exit after the current batch when it has ended")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if torch.cuda.is_available():
        set_up_cuda(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    parent = arguments.parent
    try:
        work(arguments.job_dir, should_continue=lambda: parent is None or os.getppid() == parent)
    except TunesmithError as error:
        print(error, file=sys.stderr, flush=True)
        record = {"what": error.what, "where": error.where, "remedy": error.remedy, "exit_code": int(error.exit_code)}
        write_json(arguments.job_dir / "error.json", record)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return ExitCode.FAULT
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())

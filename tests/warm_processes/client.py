"""Stands for `sys.executable` in programs that a test starts: passes what has a warm form on to the server. The same
under another name (`WarmPool.python`) stands for Python where a test itself starts a process that needs torch.

Everything else, and every environment that torch would read while it is imported and that differs from the server's,
is run by Python itself. This process stays: it has the command line, the pid and the exit status that the starting
program sees, and passes signals on.
"""

import array
import json
import os
import signal
import socket
import sys

MODULES = (
    "tunesmith.training.worker",
    "tunesmith.training.probe",
    "tunesmith.evaluation.worker",
    "tunesmith.serving.engine.process",
    "tunesmith.modeling.proof",
)
SCRIPTS = ("benchmarks/gpu/acceptance.py", "benchmarks/gpu/several.py")
READ_AT_IMPORT = ("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "GOMP_", "LD_", "MALLOC_", "TRITON_", "CUDA_", "TORCH_", "HF_")
READ_LATER = ("TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR")
OPTIONS = ("-P", "-u")
"""Options of Python that the server understands."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def main(python: str, directory: str, *, every_program: bool) -> None:
    """python: the interpreter; directory: of the pool; every_program: not only those that are listed here."""
    arguments = sys.argv[1:]
    if not ((every_program or _is_warm(arguments)) and _same_environment(directory)):
        os.execv(python, [python, *arguments])
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(os.path.join(directory, "socket"))
    except OSError:
        os.execv(python, [python, *arguments])
    for number in SIGNALS:
        signal.signal(number, lambda number, _: connection.send(bytes([number])))
    numbers = [number for number in _open_descriptors() if number != connection.fileno()]
    request = {
        "pid": os.getpid(),
        "argv": arguments,
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "umask": _umask(),
        "descriptors": numbers,
        "leads_session": os.getsid(0) == os.getpid(),
    }
    data = json.dumps(request).encode() + b"\n"
    sent = connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))])
    connection.sendall(data[sent:])
    for number in numbers:
        os.close(number)  # a pipe must end when the process that uses it does
    _exit_like(_status(connection))


def parse(arguments: list[str]) -> tuple[list[str], str, str, list[str]]:
    """Options of Python, how the program is named ("-m", "-c" or "" for a file), its name, and its arguments."""
    number = next((number for number, word in enumerate(arguments) if word not in OPTIONS), len(arguments))
    options, rest = arguments[:number], arguments[number:]
    kind = rest[0] if rest and rest[0] in ("-m", "-c") else ""
    name, *own = rest[1:] if kind else rest
    return options, kind, name, own


def _is_warm(arguments: list[str]) -> bool:
    if not [word for word in arguments if word not in OPTIONS]:
        return False
    _, kind, name, _ = parse(arguments)
    return name in MODULES if kind == "-m" else not kind and name.endswith(SCRIPTS)


def surroundings() -> dict[str, str]:
    """What must be equal in the server and in a process for the two to be interchangeable: variables, namespaces."""
    values = {
        name: value for name, value in os.environ.items() if name.startswith(READ_AT_IMPORT) and name not in READ_LATER
    }
    return values | {name: os.readlink(f"/proc/self/ns/{name}") for name in ("net", "pid", "mnt", "uts")}


def _same_environment(directory: str) -> bool:
    with open(os.path.join(directory, "surroundings.json")) as file:
        return json.load(file) == surroundings()


def _open_descriptors() -> list[int]:
    """The inheritable ones: what this program would have as well, had it been started by Python."""
    numbers = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)) or int(name) < 3:
                numbers.append(int(name))
        except OSError:  # the descriptor of the listing itself
            continue
    return sorted(numbers)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _status(connection: socket.socket) -> int:
    answer = b""
    while not answer.endswith(b"\n"):
        more = connection.recv(64)
        if not more:
            return 1 << 8  # the server is gone
        answer += more
    return int(answer)


def _exit_like(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        signal.signal(number, signal.SIG_DFL) if number not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))

"""Forks processes that have torch, transformers, peft and DeepSpeed imported: `python server.py SOCKET`.

Importing them takes 5 to 15 CPU seconds, several times what the tiny runs of the tests compute. A process forked here
starts with that done and imports Tunesmith itself, so it runs the same code as one started by Python alone. Tests whose
subject is isolation (kills, memory, hangs, imports) start real processes instead.

Protocol on the Unix socket, one connection per process: the client sends one JSON line (argv, environment, working
directory, file descriptor numbers, whether it leads a session) together with its open file descriptors; later each byte
is the number of a signal to pass on. The server answers with the exit status of `waitpid` and closes. A client that
vanishes takes its process along.
"""

import array
import atexit
import contextlib
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
import types

from client import parse

PRELOADED = ("torch", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "peft")
PRELOADED_EXTRAS = ("deepspeed",)
MAX_DESCRIPTORS = 64


def serve(path: str) -> None:
    """Accept clients until the parent process ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    for name in PRELOADED_EXTRAS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    children: dict[int, socket.socket] = {}
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:  # the pipe from pytest ends with it
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                return
            if key.fileobj is listener:
                _accept(listener, selector, children)
            elif key.fileobj == wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
                _report_exits(selector, children)
            else:
                _pass_signals(key.data, selector, children)


def _accept(listener: socket.socket, selector: selectors.BaseSelector, children: dict[int, socket.socket]) -> None:
    client, _ = listener.accept()
    client.settimeout(30)
    try:
        request, descriptors = _receive(client)
    except (OSError, ValueError):  # the client was killed before it had sent everything
        client.close()
        return
    pid = os.fork()
    if pid == 0:
        _become(request, descriptors)  # does not return
    for descriptor in descriptors:
        os.close(descriptor)
    client.settimeout(None)
    children[pid] = client
    selector.register(client, selectors.EVENT_READ, pid)


def _receive(client: socket.socket) -> tuple[dict, list[int]]:
    """The request and the descriptors that came with its first bytes."""
    room = socket.CMSG_LEN(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, _, _ = client.recvmsg(65536, room)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    while not data.endswith(b"\n"):
        more = client.recv(65536)
        if not more:
            raise ValueError("the request is not complete")
        data += more
    return json.loads(data), list(descriptors)


def _report_exits(selector: selectors.BaseSelector, children: dict[int, socket.socket]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        client = children.pop(pid, None)
        if client is not None:
            with contextlib.suppress(OSError):
                client.sendall(json.dumps(status).encode() + b"\n")
            selector.unregister(client)
            client.close()


def _pass_signals(pid: int, selector: selectors.BaseSelector, children: dict[int, socket.socket]) -> None:
    client = children.get(pid)
    if client is None:
        return
    try:
        numbers = client.recv(64)
    except OSError:
        numbers = b""
    for number in numbers or bytes([signal.SIGKILL]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    if not numbers:
        selector.unregister(client)
        client.close()
        del children[pid]


def _become(request: dict, descriptors: list[int]) -> None:
    """Turn this fork into the requested process and run it to its end."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if request["leads_session"]:
            os.setsid()
        _take_descriptors(descriptors, request["descriptors"])
        os.chdir(request["directory"])
        os.umask(request["umask"])
        os.environ.clear()
        os.environ.update(request["environment"])
        if "TUNESMITH_WARM_PROCESSES" in os.environ:  # as in site/sitecustomize.py
            sys.executable = os.path.join(os.environ["TUNESMITH_WARM_PROCESSES"], "python")
        _reseed()
        client = request["pid"]
        os.getppid = lambda: _parent_of(client)  # the client stands for this process
        code = _run(request["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(code)


def _take_descriptors(received: list[int], numbers: list[int]) -> None:
    """Give the received descriptors the numbers that they have in the client; close everything else of the server."""
    above = max([*received, *numbers]) + 1
    moved = [os.dup2(descriptor, above + place) for place, descriptor in enumerate(received)]
    os.closerange(0, above)
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)
    os.closerange(above, above + 4096)
    for stream in (sys.stdout, sys.stderr):  # what has kept them, such as a logger
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # New ones: those of the server remember that its files can be sought.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115


def _parent_of(pid: int) -> int:
    """The parent of a process; 1 once it has exited."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 1


def _reseed() -> None:
    """Random states that would otherwise be the same in every fork."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(None)


def _run(argv: list[str]) -> int:
    """`[-P] -m MODULE ...`, `-c CODE ...` or `FILE ...` as Python would run it; the exit code."""
    options, kind, name, arguments = parse(argv)
    sys.path[:] = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part] + [
        part for part in sys.path if part != os.path.dirname(__file__)
    ]
    if "-P" not in options:
        sys.path.insert(0, os.getcwd() if kind else os.path.dirname(os.path.abspath(name)))
    importlib.invalidate_caches()
    sys.argv = ["-c" if kind == "-c" else name, *arguments]
    try:
        if kind == "-m":
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        elif kind == "-c":
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(name, "<string>", "exec"), main.__dict__)
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return int(ending.code or 0)
        print(ending.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])

"""Processes on other hosts, started by ssh, or by srun in a Slurm allocation."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

CONNECT_S = 10


@dataclass(frozen=True)
class Hosts:
    """names: of the hosts. in_allocation: reach them by srun instead of ssh. The paths of Python and Tunesmith are
    the same on all hosts, as for runs."""

    names: tuple[str, ...]
    in_allocation: bool = False

    def command(self, host: str, module: str, *arguments: str) -> list[str]:
        """The command that runs a module of Tunesmith on a host."""
        program = [sys.executable, "-P", "-m", module, *arguments]
        passed = ("PYTHONPATH", "OMP_NUM_THREADS", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
        values = [f"{name}={os.environ[name]}" for name in passed if name in os.environ]
        program = ["env", *values, *program]
        if self.in_allocation:
            return ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}", *program]
        if host == "localhost":
            return program
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}"]
        return ["ssh", *options, "--", host, shlex.join(program)]


@dataclass(frozen=True)
class Running:
    """A started process with its streams; stderr goes to a file."""

    process: "subprocess.Popen[str]"
    stdin: IO[str]
    stdout: IO[str]
    errors: IO[str]
    timed_out: threading.Event

    def failure(self, timeout_s: float) -> str:
        """Why it ended, in one line: the last line that it printed to stderr."""
        self.process.wait()
        if self.timed_out.is_set():
            return f"no answer within {timeout_s:g} s"
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.returncode}"


@contextmanager
def start(command: Sequence[str], timeout_s: float) -> Iterator[Running]:
    """Start a process. It is killed with its children after timeout_s or at the end of the block. Raises OSError."""
    timed_out = threading.Event()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        assert process.stdin is not None
        assert process.stdout is not None

        def end(is_timeout: bool) -> None:
            if process.poll() is None:
                if is_timeout:
                    timed_out.set()
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(timeout_s, end, [True])
        timer.start()
        try:
            yield Running(process, process.stdin, process.stdout, errors, timed_out)
        finally:
            timer.cancel()
            end(False)
            process.wait()
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()

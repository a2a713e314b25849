"""The pool of one pytest process: starts the server and gives the environment that uses it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.warm_processes.client import surroundings

HERE = Path(__file__).resolve().parent
SITE = str(HERE / "site")
COMPUTING = ("chat", "evaluate", "export")
"""Commands of Tunesmith that import torch in their own process."""


def python_path(*first: Path) -> str:
    """PYTHONPATH with these directories in front. Never replace it: it holds what makes workers start warm."""
    return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get("PYTHONPATH")])])


def command_line(command: Sequence[str], *arguments: str | Path) -> list[str]:
    """`COMMAND ARGUMENTS`, where COMMAND is Tunesmith's; commands that need torch in their own process start warm."""
    words = list(map(str, arguments))
    directory = os.environ.get("TUNESMITH_WARM_PROCESSES")
    if directory and words and words[0] in COMPUTING:
        return [os.path.join(directory, "warm-python"), "-P", "-m", "tunesmith.cli.main", *words]
    return [*command, *words]


def start_cold() -> None:
    """Take `WarmPool.environment` out of this process's environment; whatever else PYTHONPATH holds remains."""
    os.environ.pop("TUNESMITH_WARM_PROCESSES", None)
    if parts := _other_parts():
        os.environ["PYTHONPATH"] = os.pathsep.join(parts)
    else:
        os.environ.pop("PYTHONPATH", None)


def _other_parts() -> list[str]:
    """The directories of PYTHONPATH that are not the pool's."""
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part not in ("", SITE)]


class WarmPool:
    """A server that forks processes with torch imported."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tunesmith-warm-"))  # a socket's path has at most 107 bytes
        self._process: subprocess.Popen | None = None

    def environment(self) -> dict[str, str]:
        """Variables for a program whose workers shall start warm; the first call starts the server (5 CPU seconds)."""
        self._start()
        return {"TUNESMITH_WARM_PROCESSES": str(self.directory), "PYTHONPATH": os.pathsep.join([SITE, *_other_parts()])}

    @property
    def python(self) -> str:
        """Stands for `sys.executable` where a test starts a process that needs torch and whose start is not the
        subject. Signals that a process can catch and SIGKILL reach the program, SIGSTOP does not."""
        self._start()
        return str(self.directory / "warm-python")

    def _start(self) -> None:
        if self._process is not None:
            return
        (self.directory / "surroundings.json").write_text(json.dumps(surroundings()))
        for name, every_program in (("python", False), ("warm-python", True)):
            python = self.directory / name
            python.write_text(
                f"#!{sys.executable} -SE\nimport sys\nsys.path.insert(0, {str(HERE)!r})\nimport client\n"
                f"client.main({sys.executable!r}, {str(self.directory)!r}, every_program={every_program})\n"
            )
            python.chmod(0o755)
        socket = self.directory / "socket"
        with open(self.directory / "log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "server.py"), str(socket)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not socket.exists():
            assert self._process.poll() is None, (self.directory / "log").read_text()
            time.sleep(0.05)

    def close(self) -> None:
        """End the server and what it still runs."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

"""The pool of one pytest process: starts the server and gives the environment that uses it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.warm_processes.client import surroundings

HERE = Path(__file__).resolve().parent


class WarmPool:
    """A server that forks processes with torch imported."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tunesmith-warm-"))  # a socket's path has at most 107 bytes
        self._process: subprocess.Popen | None = None

    def environment(self) -> dict[str, str]:
        """Variables for a program whose workers shall start warm; the first call starts the server (5 CPU seconds)."""
        if self._process is None:
            self._start()
        path = os.pathsep.join(filter(None, (str(HERE / "site"), os.environ.get("PYTHONPATH"))))
        return {"TUNESMITH_WARM_PROCESSES": str(self.directory), "PYTHONPATH": path}

    def _start(self) -> None:
        (self.directory / "surroundings.json").write_text(json.dumps(surroundings()))
        python = self.directory / "python"
        python.write_text(
            f"#!{sys.executable} -SE\nimport sys\nsys.path.insert(0, {str(HERE)!r})\nimport client\n"
            f"client.main({sys.executable!r})\n"
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

"""`tunesmith serve` as started by a user, and a PostgreSQL cluster for the tests."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.waiting import wait_for

COMMAND = (sys.executable, "-P", "-m", "tunesmith.cli.main")


class Postgres:
    """A cluster that listens only on a socket in its directory. As root it runs as the user postgres, as PostgreSQL
    requires."""

    def __init__(self) -> None:
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not binaries:
            pytest.skip("PostgreSQL is not installed: tools/debian_packages.sh")
        # not in pytest's temporary directory: each pytest session makes that inaccessible to other users
        folder = Path(tempfile.mkdtemp(prefix="tunesmith-pg-"))
        self.folder, self.bin, self.number = folder, binaries[-1], 0
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        self._as_owner("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "tunesmith", "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=200"
        self._as_owner("pg_ctl", "-w", "-D", f"{folder}/data", "-l", f"{folder}/log", "-o", options, "start")

    def new_url(self) -> str:
        self.number += 1
        name = f"store{self.number}"
        self._as_owner("createdb", "-h", str(self.folder), "-U", "tunesmith", name)
        return f"postgresql+psycopg://tunesmith@/{name}?host={self.folder}"

    def close(self) -> None:
        self._as_owner("pg_ctl", "-m", "immediate", "-D", f"{self.folder}/data", "stop")
        shutil.rmtree(self.folder)

    def _as_owner(self, command: str, *arguments: str) -> None:
        user = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()
        subprocess.run([*user, self.bin / command, *arguments], check=True, stdout=subprocess.DEVNULL, cwd="/")


class Api:
    """A server process on a free port. settings: in addition to home and port."""

    def __init__(self, folder: Path, **settings: Any):
        self.home = folder / "home"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        self.config, self.log = folder / "server.yaml", folder / "output.log"
        limits = {"requests_per_minute": 100_000, **settings.pop("limits", {})}
        self.config.write_text(json.dumps({"home": str(self.home), "port": self.port, "limits": limits, **settings}))
        self.scheme = "https" if "tls_cert" in settings else "http"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    def start(self) -> "Api":
        with open(self.log, "ab") as log:
            command = [*COMMAND, "serve", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._answers, explain=self.log.read_text, processes=[self.process])
        return self

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url[:-3]}/healthz", verify=False).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(120)
            self.process = None

    def client(self, key: str = "anything", **options: Any) -> OpenAI:
        return OpenAI(base_url=self.url, api_key=key, **{"max_retries": 0, **options})

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300, **options)

    def keys(self, *arguments: str) -> str:
        command = [*COMMAND, "keys", *arguments, "--config", str(self.config)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def blobs(self) -> list[str]:
        """Names of all files in the storage directory, incomplete ones included."""
        return sorted(path.name for path in (self.home / "files").rglob("*") if path.is_file())

"""A server and a supervisor as separate processes, driven by the real openai package."""

import json
import os
import signal
import socket
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx
from openai import OpenAI

from tests.waiting import LIMIT_S, wait_for
from tunesmith.rundir.paths import RunDir
from tunesmith.serving.settings import Limits, Settings, Webhook
from tunesmith.serving.store.store import Store

T = TypeVar("T")
FINAL = ("succeeded", "failed", "cancelled")


class Service:
    """One server. settings: further settings, such as the database_url of services that share a store and a home."""

    def __init__(self, home: Path, base: Path, *, hooks: tuple[Webhook, ...] = (), max_jobs: int = 1, **settings: Any):
        home.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.settings = Settings(
            home=home,
            port=port,
            bases={"tiny": base},
            max_jobs=max_jobs,
            webhooks=hooks,
            limits=Limits(requests_per_minute=100_000),
            **settings,
        )
        self.file = home / f"settings-{port}.json"
        self.file.write_text(self.settings.model_dump_json())
        self.processes: dict[str, subprocess.Popen] = {}
        self.client = OpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)

    def start(self, **environment: str) -> "Service":
        self.start_server()
        self.start_supervisor(**environment)
        return self

    def start_server(self) -> None:
        self._start("server", [str(Path(__file__).with_name("server_process.py")), str(self.file)])
        wait_for(self._is_ready)

    def start_supervisor(self, **environment: str) -> subprocess.Popen:
        command = ["-m", "tunesmith.serving.jobs.supervisor", str(self.file), "--parent", str(os.getpid())]
        return self._start("supervisor", command, **environment)

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes.pop(name).wait()

    def close(self) -> None:
        self.cancel_all()
        for name in list(self.processes):
            self.processes[name].terminate()
            self.processes.pop(name).wait(300)
        self.store.close()

    def cancel_all(self) -> None:
        """Stop the training of failed tests."""
        if "supervisor" in self.processes and "server" in self.processes:
            for job in self.client.fine_tuning.jobs.list():
                if job.status not in FINAL:
                    self.client.fine_tuning.jobs.cancel(job.id)
            wait_for(lambda: all(job.settled for job in self.store.jobs.list(None, limit=100).rows))

    @cached_property
    def store(self) -> Store:
        return Store(self.settings.store_url)

    def upload(self, rows: list[Any], name: str = "rows.jsonl") -> str:
        content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        return self.client.files.create(file=(name, content.encode()), purpose="fine-tune").id

    def create(self, file: str, **more: Any) -> Any:
        hyperparameters = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 10}
        more.setdefault("method", {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}})
        return self.client.fine_tuning.jobs.create(**{"model": "tiny", "training_file": file, **more})

    def status(self, job_id: str) -> str:
        return self.client.fine_tuning.jobs.retrieve(job_id).status

    def finished(self, job_id: str, timeout_s: float = LIMIT_S) -> Any:
        wait_for(lambda: self.status(job_id) in FINAL, timeout_s)
        return self.client.fine_tuning.jobs.retrieve(job_id)

    def succeeded(self, job_id: str) -> Any:
        job = self.finished(job_id)
        assert job.status == "succeeded", (job.error, self.log("supervisor")[-3000:])
        return job

    def events(self, job_id: str, limit: int = 50) -> list[Any]:
        """Oldest first."""
        return list(self.client.fine_tuning.jobs.list_events(job_id, limit=limit))[::-1]

    def run(self, job_id: str) -> RunDir:
        return RunDir(self.settings.runs / job_id)

    def log(self, name: str) -> str:
        return (self.settings.home / f"{name}.log").read_text()

    def _start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen:
        with open(self.settings.home / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", *command],
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.settings.port}/v1/files").status_code == 200
        except httpx.HTTPError:
            return False

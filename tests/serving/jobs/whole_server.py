"""`tunesmith serve` as started by a user, with supervisor and engine, on any back end."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from openai import OpenAI

from tests.serving.api_process import Api
from tests.serving.jobs.service import FINAL
from tests.waiting import wait_for
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status
from tunesmith.serving.store.store import Store

LONG = {"n_epochs": 50, "batch_size": 1, "learning_rate_multiplier": 1}
SHORT = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 10}


class WholeServer(Api):
    key = "anything"

    def client(self, key: str = "", **options: Any) -> OpenAI:
        return super().client(key or self.key, **options)

    def upload(self, rows: list[dict]) -> str:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return self.client().files.create(file=("rows.jsonl", content), purpose="fine-tune").id

    def create(self, file: str, hyperparameters: dict[str, Any]) -> str:
        method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
        return self.jobs.create(model="tiny", training_file=file, seed=5, method=method).id

    @property
    def jobs(self) -> Any:
        return self.client().fine_tuning.jobs

    def run_of(self, job: str) -> RunDir:
        return RunDir(self.home / "runs" / job)

    def step(self, job: str) -> int:
        status = read_status(self.run_of(job).status)
        return status.step if status else 0

    def event_steps(self, job: str) -> list[int]:
        """Steps of the job's events, in order."""
        events = list(self.jobs.list_events(job, limit=100))[::-1]
        return [event.data["step"] for event in events if event.type == "metrics"]

    def wait_until(self, job: str, *states: str) -> Any:
        """Wait until the job is in one of the states; returns it. Fails if it finishes in another state."""

        def reached() -> Any:
            now = self.jobs.retrieve(job)
            assert now.status in states or now.status not in FINAL, (now.error, self.log.read_text()[-3000:])
            return now if now.status in states else None

        return wait_for(reached)

    def answer(self, model: str) -> str:
        messages = [{"role": "user", "content": "Question 1: what about my invoice?"}]
        completion = self.client(max_retries=5).chat.completions.create(
            model=model, messages=messages, max_tokens=8, temperature=0
        )
        return completion.choices[0].message.content

    def kill(self) -> None:
        """kill -9 of the server and its supervisor at once, as if the machine had crashed. Runs are not killed."""
        assert self.process is not None
        (supervisor,) = supervisors_of(self.process.pid)
        for pid in (self.process.pid, supervisor):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(300)
        self.process = None

    def cancel_all(self) -> None:
        """Cancel the jobs of failed tests and wait until no run is alive: a job is marked before its run stops."""
        for job in self.jobs.list():
            if job.status not in FINAL:
                self.jobs.cancel(job.id)
        store = Store(f"sqlite:///{self.home / 'store.sqlite3'}")
        wait_for(lambda: all(job.settled for job in store.jobs.list(None, limit=100).rows))
        store.close()


def supervisors_of(server: int) -> list[int]:
    """Process ids of the server's supervisor: one, or none while it is restarted."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            arguments = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == server and b"tunesmith.serving.jobs.supervisor" in arguments:
            pids.append(int(path.name))
    return pids

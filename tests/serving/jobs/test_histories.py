"""Random histories of create, pause, resume, cancel, delete and kill: only legal states, no event lost or duplicated.

Store, routes, supervisor and stages are the real ones. The processes of runs are simulated: the log, checkpoints and
export of one recorded real run are copied into the run directory step by step. `make soak` runs a thousand histories;
tests/serving/jobs/test_crashes.py kills real processes.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.event_lines import event_lines
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, read_status
from tunesmith.serving.errors import ApiError
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.jobs import stages
from tunesmith.serving.jobs.hyperparameters import resolve
from tunesmith.serving.jobs.job_run import JobRun
from tunesmith.serving.jobs.recipe import TrainingRequest, recipe_of, write_recipe
from tunesmith.serving.jobs.supervisor import Supervisor
from tunesmith.serving.names import make_id
from tunesmith.serving.routes import jobs as routes
from tunesmith.serving.routes.context import Caller, Server
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import File

HISTORIES = 1000 if os.environ.get("TUNESMITH_SOAK") else 12
LEGAL = {
    "validating_files": {"queued", "failed", "cancelled"},
    "queued": {"running", "failed", "cancelled"},
    "running": {"pausing", "succeeded", "failed", "cancelled"},
    "pausing": {"paused", "succeeded", "failed", "cancelled"},
    "paused": {"queued", "cancelled"},
    "succeeded": set(),
    "failed": set(),
    "cancelled": set(),
}
FAULT_POINTS = [
    *("job.copied", "job.validated", "job.queued", "job.placed", "job.relay", "job.checkpoint", "job.result"),
    *("job.publish", "job.published", "job.settle"),
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, tiny_llama, chat_rows) -> SimpleNamespace:
    """A real run of 12 steps with two checkpoints."""
    home = tmp_path_factory.mktemp("recorded")
    rows = "".join(json.dumps(row) + "\n" for row in chat_rows[:12])
    (home / "train.jsonl").write_text(rows)
    numbers = resolve("supervised", {"n_epochs": 2, "batch_size": 2}, 12)
    request = TrainingRequest(
        "ftjob-recorded", tiny_llama, None, "supervised", "chat", numbers, 5, 12, home / "train.jsonl", None, 2048
    )
    write_recipe(recipe_of(request), home / "recipe.yaml")
    command = [sys.executable, "-P", "-m", "tunesmith.cli.main", "train", str(home / "recipe.yaml")]
    environment = {**os.environ, "TUNESMITH_CACHE": str(tmp_path_factory.getbasetemp() / "tunesmith-cache")}
    subprocess.run([*command, "--run-dir", str(home / "run")], check=True, capture_output=True, env=environment)
    run = RunDir(home / "run")
    return SimpleNamespace(run=run, events=list(event_lines(run.events)), rows=rows.encode(), base=tiny_llama)


class PlayedRun(JobRun):
    """A run that starts and stops on request; its progress is replayed by the history."""

    recorded: RunDir

    def start(self) -> bool:
        run, earlier = self.run, self.status
        run.create()
        if not run.exists:
            shutil.copy(self.recorded.plan, run.plan)
        attempt = (earlier.attempt if earlier else 0) + 1
        steps = [int(path.name[5:]) for path in run.checkpoints.glob("step-*")]
        self.write(Status("training", max(steps, default=0), 12, attempt))
        append(run, {"time": time.time(), "kind": "start", "attempt": attempt, "step": max(steps, default=0)})
        return True

    def write(self, status: Status) -> None:
        status.write(self.run.status)

    def request_stop(self) -> bool:
        status = self.status
        if status is not None and status.phase == "training":
            status.phase = "preempted"
            self.write(status)
        return True


def append(run: RunDir, event: dict) -> None:
    with open(run.events, "ab") as file:
        file.write(json.dumps(event).encode() + b"\n")


def play(run: RunDir, recorded: SimpleNamespace, num_steps: int) -> None:
    """Replay the next steps of the recorded run; after the last one, its end."""
    status = read_status(run.status)
    if status is None or status.phase != "training":
        return
    for _ in range(num_steps):
        done = status.step
        for event in recorded.events:
            if event.get("step") == done + 1 and event["kind"] in ("step", "checkpoint"):
                if event["kind"] == "checkpoint":
                    shutil.copytree(recorded.run.checkpoint(done + 1), run.checkpoint(done + 1), dirs_exist_ok=True)
                append(run, event)
        status.step = done + 1
        if status.step == 12:
            shutil.copytree(recorded.run.export, run.export, dirs_exist_ok=True)
            append(run, {"time": time.time(), "kind": "end", "outcome": "done", "step": 12, "exit_code": 0})
            status.phase = "done"
            break
    status.write(run.status)


class Killed(BaseException):
    """The supervisor was killed at a fault point."""


class Histories(RuleBasedStateMachine):
    recorded: SimpleNamespace
    directory: Path
    numbers = count()

    def __init__(self):
        super().__init__()
        home = self.directory / f"history-{next(self.numbers)}"
        self.settings = Settings(home=home, bases={"tiny": self.recorded.base}, max_jobs=2)
        self.store, self.blobs = Store(self.settings.store_url), Blobs(self.settings.blobs_url)
        self.server = Server(self.settings, self.store, self.blobs)
        self.caller = Caller("local", frozenset())
        self.files: list[str] = []
        self.jobs: list[str] = []
        self.states: dict[str, str] = {}
        self.events: dict[str, list[tuple[int, str, str]]] = {}
        self.kill_point: str | None = None
        stages.fault_point = self.fault_point
        self.supervisor = Supervisor(self.store, self.blobs, self.settings)

    def fault_point(self, name: str) -> None:
        if name == self.kill_point:
            self.kill_point = None
            raise Killed(name)

    @initialize()
    def begin(self):
        self.upload(good=True)

    @rule(good=st.booleans())
    def upload(self, good):
        id, content = make_id("file-"), self.recorded.rows if good else self.recorded.rows[:1000]
        self.blobs.write(id, content)
        file = File(id=id, organization="local", created_at=int(time.time()), bytes=len(content), filename="x.jsonl")
        file.purpose, file.status, file.blob, file.sha256 = "fine-tune", "processed", id, "0" * 64
        self.store.files.add(file)
        self.files.append(id)

    @precondition(lambda self: self.files and len(self.jobs) < 4)
    @rule(data=st.data())
    def create(self, data):
        body = {"model": "tiny", "training_file": data.draw(st.sampled_from(self.files))}
        body["hyperparameters"] = {"n_epochs": 2, "batch_size": 2}
        self.jobs.append(routes.create_job(self.server, self.caller, body)["id"])

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def delete_file(self, data):
        id = self.files.pop(data.draw(st.integers(0, len(self.files) - 1)))
        self.store.files.delete(id)
        self.blobs.delete(id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), route=st.sampled_from(["pause_job", "resume_job", "cancel_job"]))
    def change(self, data, route):
        self.request(route, data.draw(st.sampled_from(self.jobs)))

    def request(self, name: str, job_id: str) -> None:
        allowed = {"pause_job": ("running",), "resume_job": ("paused",), "cancel_job": routes.ACTIVE}[name]
        before = self.store.jobs.get(job_id).status
        if before in allowed:
            getattr(routes, name)(job_id, self.server, self.caller)
            return
        with pytest.raises(ApiError) as raised:
            getattr(routes, name)(job_id, self.server, self.caller)
        assert raised.value.status == 400

    @rule(times=st.integers(1, 3))
    def supervise(self, times):
        for _ in range(times):
            self.supervisor.tick()
            futures = [claimed.work for claimed in self.supervisor._claimed.values() if claimed.work is not None]
            errors = [future.exception() for future in futures]
            if any(isinstance(error, Killed) for error in errors):
                self.restart()

    @rule()
    def restart(self):
        """kill -9 and restart: the supervisor loses everything in memory."""
        owner, claimed = self.supervisor.owner, list(self.supervisor._claimed)
        self.supervisor._pool.shutdown(wait=True)
        for job_id in claimed:
            self.store.jobs.release(job_id, owner)  # done by the next supervisor of the same machine
        self.supervisor = Supervisor(self.store, self.blobs, self.settings)

    @rule(point=st.sampled_from(FAULT_POINTS))
    def kill_at(self, point):
        self.kill_point = point

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), num_steps=st.integers(1, 12))
    def train(self, data, num_steps):
        play(self.run_of(data.draw(st.sampled_from(self.jobs))), self.recorded, num_steps)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def kill_run(self, data):
        """The process is killed; its status file does not change."""
        run = self.run_of(data.draw(st.sampled_from(self.jobs)))
        if (status := read_status(run.status)) is not None and status.phase == "training":
            raw = {**json.loads(run.status.read_text()), "pid": 2**22 + 1}
            run.status.write_text(json.dumps(raw))

    def run_of(self, job_id: str) -> RunDir:
        return RunDir(self.settings.runs / job_id)

    @invariant()
    def states_and_events_are_legal(self):
        for job_id in self.jobs:
            job = self.store.jobs.get(job_id)
            before = self.states.get(job_id, "validating_files")
            assert job.status in reachable(before), f"{before} -> {job.status}"
            self.states[job_id] = job.status
            rows = self.store.events.list(job_id, limit=500, newest_first=False).rows
            events, earlier = [(row.number, row.source, row.id) for row in rows], self.events.get(job_id, [])
            assert [number for number, *_ in events] == list(range(1, len(events) + 1))
            assert events[: len(earlier)] == earlier
            self.events[job_id] = events
            steps = [int(source[5:]) for _, source, _ in events if source.startswith("step:")]
            assert steps == list(range(1, len(steps) + 1))
            names = {
                model.name for model in self.store.models.list("local", checkpoints=True) if model.job_id == job_id
            }
            assert (job.details["name"] in names) == (job.status == "succeeded")
            assert (job.error is not None) == (job.status == "failed")
            assert (job.finished_at is not None) == (job.status in stages.FINAL)
        states = [job.status for job in self.store.jobs.list(None, limit=100).rows]
        assert sum(state in ("running", "pausing") for state in states) <= self.settings.max_jobs

    def teardown(self):
        """After any history, every job finishes."""
        self.kill_point = None
        deadline = time.monotonic() + 60
        while any(not self.store.jobs.get(job_id).settled for job_id in self.jobs):
            assert time.monotonic() < deadline, self.states
            for job_id in self.jobs:
                if self.store.jobs.get(job_id).status == "paused":
                    self.request("resume_job", job_id)
                play(self.run_of(job_id), self.recorded, 5)
            self.supervise(1)
            self.states_and_events_are_legal()
        for job_id in self.jobs:
            job = self.store.jobs.get(job_id)
            assert job.status in stages.FINAL
            sources = [source for _, source, _ in self.events[job_id]]
            if job.status == "succeeded":
                assert [source for source in sources if source.startswith("step:")] == [
                    f"step:{n}" for n in range(1, 13)
                ]
                assert sources[-2:] == ["model", "succeeded"]
                assert [row.step_number for row in self.store.checkpoints.list(job_id).rows] == [12, 6]
            else:
                assert job.status in sources
        self.supervisor.close()
        self.store.close()
        shutil.rmtree(self.settings.home)


def reachable(state: str) -> set[str]:
    """States that a job can reach from a state in any number of transitions."""
    states, stack = {state}, [state]
    while stack:
        for following in LEGAL[stack.pop()] - states:
            states.add(following)
            stack.append(following)
    return states


@pytest.mark.timeout(4 * 3600)
def test_histories(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "JobRun", PlayedRun)
    monkeypatch.setattr(stages, "fault_point", stages.fault_point)  # restores it after the test
    monkeypatch.setattr(PlayedRun, "recorded", recorded.run, raising=False)
    machine = type("Machine", (Histories,), {"recorded": recorded, "directory": tmp_path})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

"""Runs, server directories and pending Slurm jobs of commit cf466db work with the current code.

The archives were created by tests/fixtures/cf466db/create.py.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from safetensors import deserialize

from tests.compatibility.conftest import COMMAND, FIXTURES, Project, move, unpack_to
from tests.waiting import wait_for

VERSION = "cf466db"
pytestmark = pytest.mark.slow
LOSS = 1e-4
"""Relative tolerance. On the same machine the losses are bit-identical. With the instructions of another CPU
(ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE) and two threads the maximum difference was 6e-8; without the moments
of the optimizer 7e-3."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in lines(run / "events.jsonl") if event["kind"] == kind]


def losses(run: Path) -> dict[int, float]:
    """Losses by step; no step was trained twice."""
    steps = events(run, "step")
    by_step = {event["step"]: event["loss"] for event in steps}
    assert len(by_step) == len(steps)
    return by_step


def require_proofs(project: Project, run: Path, *, open_ones: int = 0) -> None:
    """All proofs hold, including the replay; `open_ones` may be open."""
    proofs = project.json("prove", run)
    assert len(proofs) > 10
    assert all(proof["passed"] is not False for proof in proofs), proofs
    assert sum(proof["passed"] is None for proof in proofs) == open_ones, proofs


def test_the_archives_stay_small():
    assert sum(path.stat().st_size for path in (FIXTURES / VERSION).iterdir()) < 3_000_000


# --- Runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["trained by the same command", "moved and resumed"])
def test_an_interrupted_run_completes_with_the_expected_losses(unpack, tmp_path, how):
    project = unpack(VERSION, "interrupted")
    facts, run = project.facts, project.directory / "run"
    before = losses(run)
    assert len(before) == facts["steps_done"]
    status = project.json("status", run)
    assert (status["phase"], status["step"]) == ("preempted", facts["steps_done"])

    if how == "moved and resumed":
        run = move(run, tmp_path / "elsewhere" / "another-name")
        project.run("resume", run)
    else:
        project.run("train", "recipe.yaml", "--run-dir", "run")
    assert project.json("status", run)["phase"] == "done"
    after = losses(run)
    assert after.items() >= before.items()
    expected = {int(step): loss for step, loss in facts["losses"].items()}
    assert after == pytest.approx(expected, rel=LOSS)
    (evaluation,) = [event for event in events(run, "evaluation") if event["when"] == "after"]
    assert evaluation["loss"] == pytest.approx(facts["after"], rel=LOSS)
    assert (run / "export" / "adapter_model.safetensors").is_file()
    require_proofs(project, run)


def test_every_command_works_on_a_finished_run(unpack):
    project = unpack(VERSION, "finished")
    facts, run = project.facts, project.directory / "run"
    status = project.json("status", run)
    assert (status["phase"], status["step"]) == ("done", facts["steps"])
    assert status["evaluation"]["after"]["loss"] == facts["after"]
    assert "run" in project.run("runs", project.directory)
    (run / "report.html").unlink()
    project.run("report", run)
    assert "Question" in (run / "report.html").read_text(encoding="utf-8")
    require_proofs(project, run)
    answer = project.json("chat", run, "Question 1: and my printer?", "--max-new-tokens", "20")
    assert answer["text"] == facts["answer"]
    scored = project.json("evaluate", run, "--data", "more.jsonl")
    assert scored["metrics"]["loss"] == pytest.approx(facts["more"], rel=LOSS)
    project.run("export", run, "--to", "exported")
    first, again = (
        deserialize((path / "model.safetensors").read_bytes())
        for path in (run / "export", project.directory / "exported")
    )
    assert sorted(first, key=lambda item: item[0]) == sorted(again, key=lambda item: item[0])
    assert len(first) > 10


def test_a_finished_run_is_not_trained_again_because_its_tokens_are_unchanged(unpack):
    project = unpack(VERSION, "finished")
    log = project.directory / "run" / "events.jsonl"
    before = log.read_bytes()
    assert "finished" in project.run("train", "recipe.yaml", "--run-dir", "run")
    assert log.read_bytes() == before


def test_a_finished_run_works_without_its_base_model_and_rows(unpack, tmp_path):
    project = unpack(VERSION, "finished")
    run = move(project.directory / "run", tmp_path / "elsewhere" / "another-name")
    facts = project.facts
    for path in [*project.directory.iterdir()]:
        path.rename(tmp_path / path.name)
    assert project.json("status", run, within=tmp_path)["phase"] == "done"
    project.run("report", run, within=tmp_path)
    answer = project.json("chat", run, "Question 1: and my printer?", "--max-new-tokens", "20", within=tmp_path)
    assert answer["text"] == facts["answer"]
    require_proofs(project, run, open_ones=1)  # no replay without the base model


# --- Server data directory -------------------------------------------------------------------------------------------


class Served:
    """`tunesmith serve` with the data directory of an earlier version."""

    def __init__(self, project: Project):
        self.project, self.facts = project, project.facts
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = project.directory / "serve.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--config", "server.yaml", "--port", str(self.port)],
                cwd=project.directory,
                env=project.all_environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._is_ready, explain=self.log.read_text)

    def client(self, key: str | None = None) -> OpenAI:
        return OpenAI(api_key=key or self.facts["key"], base_url=f"http://127.0.0.1:{self.port}/v1", max_retries=3)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(300)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.port}/healthz").status_code == 200
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    server = Served(unpack_to(tmp_path_factory.mktemp("served"), VERSION, "server", {}))
    yield server
    server.close()


def test_the_api_key_of_a_server_still_works_and_no_other_does(served):
    assert served.client().models.list().data
    for key in ("none", served.facts["key"][:-1] + "x"):
        with pytest.raises(openai.AuthenticationError):
            served.client(key).models.list()
    (key,) = served.project.json("keys", "list", "--config", "server.yaml")
    assert (key["name"], key["revoked_at"]) == ("laptop", None)


def test_a_server_lists_its_jobs_files_and_models(served):
    facts, client = served.facts, served.client()
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"made": "before"})] == [
        facts["queued"],
        facts["succeeded"],
    ]
    job = client.fine_tuning.jobs.retrieve(facts["succeeded"])
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == (
        "succeeded",
        facts["model"],
        facts["trained_tokens"],
    )
    assert [job.training_file, job.validation_file] == facts["files"]
    assert job.result_files == [facts["result_file"]]
    for file, content in zip(facts["files"], facts["content"], strict=True):
        assert client.files.retrieve(file).purpose == "fine-tune"
        assert client.files.content(file).text == content
    assert client.files.content(facts["result_file"]).text.startswith("step,train_loss")
    assert {*facts["files"], facts["result_file"]} <= {file.id for file in client.files.list()}
    names = {model.id for model in client.models.list()}
    assert {facts["model"], "tiny"} <= names
    points = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert len(points) == 3
    assert points[0].fine_tuned_model_checkpoint.startswith(f"{facts['model']}:ckpt-step-")
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert messages[0] == "The job has successfully completed"
    assert messages[-1] == f"Created fine-tuning job: {job.id}"


def test_a_server_serves_a_model_that_was_fine_tuned_before(served):
    facts, client = served.facts, served.client()
    request: Any = {"messages": [{"role": "user", "content": facts["question"]}], "max_tokens": 20, "temperature": 0}
    last = next(iter(client.fine_tuning.jobs.checkpoints.list(facts["succeeded"])))
    for model in (facts["model"], last.fine_tuned_model_checkpoint):
        answered = client.chat.completions.create(model=model, **request)
        assert answered.choices[0].message.content == facts["answer"]
        pieces = client.chat.completions.create(model=model, stream=True, **request)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == facts["answer"]
    base = client.chat.completions.create(model="tiny", **request)
    assert base.choices[0].message.content != facts["answer"]


def test_a_previously_queued_job_is_trained(served):
    jobs, job = served.client().fine_tuning.jobs, served.facts["queued"]
    ended = wait_for(
        lambda: (current := jobs.retrieve(job)).status in ("succeeded", "failed") and current,
        explain=served.log.read_text,
    )
    assert ended.status == "succeeded", ended.error
    job_events = list(jobs.list_events(job, limit=100))[::-1]
    messages = [event.message for event in job_events]
    assert messages.count(f"Created fine-tuning job: {job}") == messages.count("Fine-tuning job started") == 1
    steps = [event.data["step"] for event in job_events if event.type == "metrics"]
    assert steps == list(range(1, 17))  # 32 rows, 2 epochs, batch size 4
    prompt: Any = [{"role": "user", "content": served.facts["question"]}]
    answered = served.client().chat.completions.create(model=ended.fine_tuned_model, messages=prompt, max_tokens=4)
    assert answered.usage.completion_tokens


# --- Slurm jobs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(cluster, unpack) -> Callable[[str], Project]:
    return lambda name: unpack(VERSION, name, **cluster.environment)


def submit(cluster, project: Project, stage: str, *options: str, first_start: str = "") -> str:
    """Submit the batch script of the earlier version; return the job ID. first_start: inserted before the body."""
    text = (project.directory / "run" / "jobs" / f"{stage}.sbatch").read_text(encoding="utf-8")
    head, mark, body = text.partition("#SBATCH --requeue\n")
    assert mark
    (project.directory / "run" / "logs").mkdir(exist_ok=True)
    ended = subprocess.run(
        ["sbatch", "--parsable", *options],
        input=head + mark + first_start + body,
        env=cluster.environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def logs(project: Project) -> str:
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in project.directory.glob("run/logs/*.log"))


def test_a_pending_chain_in_slurm_completes(cluster, slurm):
    project = slurm("queued")
    run, before = project.directory / "run", project.facts["jobs"]
    jobs, after = {}, ("--hold",)
    for stage in before:
        jobs[stage] = submit(cluster, project, stage, *after)
        after = (f"--dependency=afterok:{jobs[stage]}", "--kill-on-invalid-dep=yes")
    project.replace({before[stage]: jobs[stage] for stage in jobs})  # as if Slurm had assigned these IDs
    status = project.json("status", run)
    assert status["phase"] == "queued"
    assert [job["state"] for job in status["jobs"]] == ["PENDING"] * 4
    cluster.call("scontrol", "release", jobs["prepare"])
    for job in jobs.values():
        assert cluster.wait(job)["JobState"] == "COMPLETED", logs(project)
    results = {stage: json.loads((run / "jobs" / f"{stage}-{job}.result").read_text()) for stage, job in jobs.items()}
    assert results["train"]["step"] == len(losses(run)) == max(losses(run))
    assert results["evaluate"]["metrics"]["num_examples"] == 10
    assert results["evaluate"]["comparison"]["loss"]["value"] < -0.5
    assert results["export"]["gate"]["passed"]
    assert (run / "export" / "adapter_model.safetensors").is_file()
    assert (run / "merged" / "model.safetensors").is_file()
    assert project.json("status", run)["phase"] == "done"
    require_proofs(project, run)


FIRST_START = 'if [ -z "${SLURM_RESTART_COUNT:-}" ]; then scontrol requeue "$SLURM_JOB_ID"; exit 75; fi\n'
"""Replaces the first start of the job, whose files are in the fixture: Slurm then starts the job a second time."""


def test_a_requeued_run_in_slurm_resumes_from_its_checkpoint(cluster, slurm):
    project = slurm("requeued")
    run, facts = project.directory / "run", project.facts
    before = losses(run)
    assert max(before) == facts["step"] < facts["total_steps"]
    job = submit(cluster, project, "train", "--hold", first_start=FIRST_START)
    project.replace({facts["jobs"]["train"]: job})
    assert project.run("status", run).startswith("Waiting.")
    cluster.call("scontrol", "release", job)
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), logs(project)
    starts = lines(run / "jobs" / "lives.jsonl")
    assert [(each["job"], each["life"], each["step"]) for each in starts] == [(job, 1, 0), (job, 2, facts["step"])]
    after = losses(run)
    assert after.items() >= before.items()
    assert sorted(after) == list(range(1, facts["total_steps"] + 1))
    first, second = events(run, "start")
    assert (first["world_size"], second["world_size"], second["step"]) == (2, 2, facts["step"])
    assert (run / "export" / "adapter_model.safetensors").is_file()
    status = project.json("status", run)
    assert status["phase"] == "done"
    assert status["evaluation"]["after"]["loss"] < status["evaluation"]["before"]["loss"] - 0.5


# --- Entry points ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("tunesmith.launcher.cli", "Fine-tune"),  # detached launchers, jobs submitted to a Ray cluster
        ("tunesmith.launcher.job", "--stage"),  # batch scripts
        ("tunesmith.training.worker", "--attempt"),  # a launcher that restarts lost workers
        ("tunesmith.serving.jobs.supervisor", "--parent"),  # a server that restarts its supervisor
    ],
)
def test_waiting_and_running_processes_find_the_modules_that_they_call(unpack, module, expected):
    project = Project(unpack(VERSION, "queued").directory)
    ended = subprocess.run(
        [sys.executable, "-P", "-m", module, "--help"],
        env=project.all_environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert expected in ended.stdout

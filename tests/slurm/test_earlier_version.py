"""Pending jobs that version 0.1 submitted, with its script and job.json (commit cf466db)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tests.waiting import wait_for
from tunesmith.launcher.slurm.script import SCRIPTS
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status

pytestmark = pytest.mark.slow
WRITTEN = Path(__file__).parent / "version_0_1"


@pytest.fixture
def queued(cluster, tiny_llama, chat_rows, tmp_path):
    """queued(name) -> (run directory, ID of its job), as created by version 0.1; the job is held."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows))

    def filled(name: str, run: RunDir, number: str = "") -> str:
        values = {"RUN": run.root, "DIRECTORY": tmp_path, "MODEL": tiny_llama, "NUMBER": number}
        values |= {"PYTHON": sys.executable, "SCRIPTS": SCRIPTS}
        text = (WRITTEN / name).read_text()
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        return text

    def make(name: str) -> tuple[RunDir, str]:
        run = RunDir(tmp_path / name)
        run.create()
        run.jobs.mkdir()
        script = run.jobs / "train.sbatch"
        script.write_text(filled("train.sbatch", run))
        Status("queued").write(run.status)
        submitter = subprocess.Popen(["true"])  # has ended by the time the run is inspected
        submitter.wait()
        values = json.loads(run.status.read_text())
        run.status.write_text(json.dumps({**values, "pid": submitter.pid}))
        number = cluster.call("sbatch", "--parsable", "--hold", script)
        run.job.write_text(filled("job.json", run, number))
        Launch("slurm", job=number).write(run.launch)
        return run, number

    return make


@pytest.fixture
def tunesmith(cluster, tmp_path):
    def run(*arguments: str | Path) -> str:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "tunesmith.cli.main", *map(str, arguments)],
            cwd=tmp_path,
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return run


def logs(run: RunDir) -> str:
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(run.logs.glob("*.log")))


def test_a_pending_job_of_version_0_1_completes(cluster, queued, tunesmith):
    run, number = queued("pending")
    status = tunesmith("status", run.root)
    assert status.startswith("Queued.")
    assert f"job {number}: train: pending" in status
    cluster.call("scontrol", "release", number)
    assert cluster.wait(number)["ExitCode"] == "0:0", logs(run)
    assert json.loads(tunesmith("status", run.root, "--json"))["phase"] == "done"
    assert json.loads(run.result("train", number).read_text())["step"] == len(list(event_lines(run.events, "step")))
    assert (run.export / "adapter_model.safetensors").is_file()


def test_a_requeued_job_of_version_0_1_completes(cluster, queued):
    run, number = queued("requeued")
    cluster.call("scontrol", "release", number)
    wait_for(lambda: run.plan.is_file(), explain=lambda: logs(run))
    cluster.call("scontrol", "requeue", number)
    wait_for(lambda: len(list(event_lines(run.job_starts, "life"))) > 1, explain=lambda: logs(run))
    assert cluster.wait(number)["ExitCode"] == "0:0", logs(run)
    assert (run.export / "adapter_model.safetensors").is_file()


def test_a_cancelled_job_of_version_0_1_can_be_resumed(cluster, queued, tunesmith):
    run, number = queued("again")
    assert tunesmith("stop", run.root) == f"ended: job {number} (train)\n"
    jobs = json.loads(tunesmith("resume", run.root, "--json"))["jobs"]
    assert jobs["train"] != number
    assert cluster.wait(jobs["train"])["ExitCode"] == "0:0", logs(run)
    assert (run.export / "adapter_model.safetensors").is_file()

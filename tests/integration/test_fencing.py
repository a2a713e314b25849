"""A worker of a superseded attempt writes nothing; a worker whose launcher has exited ends."""

import os
import subprocess
from functools import partial

import pytest

from tests.event_lines import event_lines
from tests.integration.conftest import make_project
from tests.waiting import LIMIT_S, wait_for
from tunesmith.configs.plan import Plan, read_plan
from tunesmith.rundir.fence import Superseded, begin_attempt, newest_attempt
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status


@pytest.fixture
def start(warm_python):
    """start(run, attempt, fault="", **environment) -> the process: see `start_worker`."""
    return partial(start_worker, warm_python)


def start_worker(python: str, run: RunDir, attempt: int, fault: str = "", **environment: str) -> subprocess.Popen:
    command = [python, "-P", "-m", "tunesmith.training.worker", str(run.root), "--attempt", str(attempt)]
    variables = {
        **os.environ,
        "TUNESMITH_FAULT": fault,
        "TUNESMITH_FAULT_UNTIL": str(run.root / "go-on"),
        **environment,
    }
    with open(run.log(attempt), "w") as log:
        return subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def plan(tmp_path_factory, tiny_llama, chat_rows) -> Plan:
    """The plan of a run whose data is prepared."""
    project = make_project(tmp_path_factory.mktemp("prepared"), tiny_llama, chat_rows)
    recipe = project.write(evaluation={"num_answers": 0})
    return read_plan(project.train(recipe, "uninterrupted").plan)


@pytest.fixture
def run(plan, tmp_path) -> RunDir:
    """A planned and prepared run that has not started."""
    run = RunDir(tmp_path / "run")
    run.create()
    plan.write(run.plan)
    return run


def contents(run: RunDir) -> dict[str, bytes]:
    """Every file with state of the run, without the ledger, which distinguishes attempts itself."""
    return {
        str(path.relative_to(run.root)): path.read_bytes()
        for path in run.root.rglob("*")
        if path.is_file() and path.parent not in (run.logs, run.ledger, run.beats) and path.name != "go-on"
    }


def test_superseded_attempt_writes_nothing(run, start):
    """Attempt 1 hangs in a step, attempt 2 before renaming a sealed checkpoint; attempt 3 completes the run."""
    in_step = start(run, 1, "step.update:3=hang")
    wait_for(lambda: run.checkpoint(2).is_dir(), processes=[in_step])
    in_commit = start(run, 2, "commit.manifest:1=hang")
    wait_for(lambda: (run.checkpoints / "step-00000004.tmp.2" / "manifest.json").is_file(), processes=[in_commit])
    third = start(run, 3)
    assert third.wait(timeout=LIMIT_S) == 0, run.log(3).read_text()
    assert newest_attempt(run) == 3

    before = contents(run)
    assert any("export" in name for name in before)
    (run.root / "go-on").touch()
    for attempt, process in ((1, in_step), (2, in_commit)):
        assert process.wait(timeout=LIMIT_S) == 1
        assert f"attempt {attempt} no longer writes" in run.log(attempt).read_text()
    assert contents(run) == before
    status = read_status(run.status)
    assert status is not None
    assert (status.phase, status.attempt, status.exit_code) == ("done", 3, 0)
    assert [event["attempt"] for event in event_lines(run.events, "start")] == [1, 2, 3]

    late = start(run, 2)
    assert late.wait(timeout=LIMIT_S) == 1
    assert contents(run) == before
    with pytest.raises(Superseded, match="attempt 3 of this run has started"):
        begin_attempt(run, 1)


def test_hanging_worker_without_a_launcher_exits(run, start):
    """With a short grace period; the log contains the stack of the hanging thread before the error."""
    worker = start(run, 1, "step.update:2=hang", TUNESMITH_PARENT_PIPE="1", TUNESMITH_ORPHAN_GRACE_S="1")
    wait_for(lambda: any(event["step"] == 1 for event in event_lines(run.events, "step")), processes=[worker])
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(timeout=LIMIT_S) == 1
    log = run.log(1).read_text()
    assert "in fault_point" in log
    assert "after its launcher exited: terminating without a save" in log
    assert "what to do:" in log.strip().splitlines()[-1]

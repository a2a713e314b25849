"""Several processes on one machine without a cluster: equal results, stopping and recovery."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tests.integration.processes import AWAIT_TERM_AT_STEP_4, rows_by_step, steps_of, workers_of
from tests.waiting import LIMIT_S, wait_for
from tunesmith.errors import ExitCode
from tunesmith.launcher.runs.find import phase_of
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status

TWO = ("--set", "resources.workers=2")


def test_two_processes_match_one_and_a_killed_worker_is_restarted(project, alone):
    running = project.start("train", project.write(), "--run-dir", "two", *TWO)
    run = RunDir(project.directory / "two")
    wait_for(lambda: any(run.checkpoints.glob("step-*[0-9]")))
    os.kill(wait_for(lambda: workers_of(run).get(1)), signal.SIGKILL)
    output, _ = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 0, output
    assert "the worker of rank 1 was killed (SIGKILL)" in output
    assert "restarting (attempt 2)" in output
    starts = list(event_lines(run.events, "start"))
    assert [(start["attempt"], start["world_size"]) for start in starts] == [(1, 2), (2, 2)]
    assert starts[1]["step"] >= 2
    assert rows_by_step(run) == rows_by_step(alone)
    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-5)
    assert project.run("prove", "two").returncode == 0


def test_detached_run_is_stopped_and_resumed_with_another_number_of_processes(project, alone):
    begun = project.run("train", project.write(), "--run-dir", "far", "--detach", **AWAIT_TERM_AT_STEP_4)
    run = RunDir(project.directory / "far")
    assert begun.returncode == 0, begun.stderr
    assert "tunesmith stop" in begun.stdout
    wait_for(lambda: len(steps_of(run)) >= 2)
    stopping = project.start("stop", "far")
    wait_for(run.stop_request.exists)
    output, errors = stopping.communicate(timeout=LIMIT_S)
    assert (stopping.returncode, read_status(run.status).exit_code) == (0, ExitCode.PREEMPTED), errors
    assert "the state is saved" in output
    assert not workers_of(run)
    assert not run.stop_request.exists()
    assert "nothing is running" in project.run("stop", "far").stdout
    assert "step" in project.run("logs", "far", "--launcher").stdout
    refused = project.run("resume", "far", "--set", "optimization.epochs=9")
    assert refused.returncode == ExitCode.BAD_INPUT
    assert "cannot be changed when a run is resumed" in refused.stderr
    rows = project.directory / "chats.jsonl"
    kept = rows.read_text()
    rows.write_text(kept + kept.splitlines()[0] + "\n")
    assert project.run("resume", "far").returncode == ExitCode.BAD_INPUT
    assert phase_of(run) == "preempted"  # a rejected resume changes nothing
    rows.write_text(kept)

    resumed = project.run("resume", "far", *TWO)
    assert resumed.returncode == 0, resumed.stderr
    assert [start["world_size"] for start in event_lines(run.events, "start")] == [1, 2]
    assert rows_by_step(run) == rows_by_step(alone)
    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-5)


def test_detached_run_with_bad_input_fails_at_once(project):
    (project.directory / "chats.jsonl").write_text('{"messages": []}\n')
    refused = project.run("train", project.write(), "--run-dir", "bad", "--detach")
    assert refused.returncode == ExitCode.BAD_INPUT
    assert "chats.jsonl:1" in refused.stderr
    assert phase_of(RunDir(project.directory / "bad")) == "failed"


def test_missing_log_is_an_error_that_lists_the_existing_logs(project, alone):
    assert project.run("logs", alone.root).returncode == 0
    missing = project.run("logs", alone.root, "--rank", "3")
    assert missing.returncode == ExitCode.BAD_INPUT
    assert "attempt-001-rank-00000.log" in missing.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["resources.nodes=2"], "--on ray"),
        (["resources.workers=[3, 2]"], "write [2, 3]"),
        (["resources.gpus_per_node=8"], "requires 8 GPUs"),
        (["resources.workers=0"], "1 or more"),
    ],
)
def test_impossible_resources_are_rejected_before_the_run_starts(project, overrides, message):
    arguments = [word for override in overrides for word in ("--set", override)]
    refused = project.run("train", project.write(), "--run-dir", "none", *arguments)
    assert refused.returncode == ExitCode.BAD_INPUT
    assert message in refused.stderr


def test_plan_states_the_number_of_processes_with_a_reason(project):
    planned = project.run("plan", project.write(), "--set", "resources.workers=[1, 64]", "--json")
    plan = json.loads(planned.stdout)
    cores = len(os.sched_getaffinity(0))
    assert 1 <= plan["compute"]["world_size"] <= cores
    (choice,) = [choice for choice in plan["choices"] if choice["key"] == "workers"]
    assert "of 1 to 64" in choice["reason"]


def test_torchrun_can_start_the_workers(project, alone, warm_python):
    """A worker needs only plan.json and the variables that torchrun sets."""
    planned = project.run("train", project.write(), "--run-dir", "torchrun", *TWO, TUNESMITH_FAULT="step.forward=kill")
    assert planned.returncode == ExitCode.FAULT
    command = [warm_python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tunesmith.training.worker", str(project.directory / "torchrun"), "--attempt", "9"]
    result = subprocess.run(command, cwd=project.directory, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    run = RunDir(Path(project.directory / "torchrun"))
    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-5)

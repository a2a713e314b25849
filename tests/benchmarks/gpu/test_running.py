"""Stages that hang, crash or fail are recorded, the next one runs, and --continue runs only what did not pass."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import command, running
from benchmarks.gpu.record import compare
from tests.benchmarks.gpu import planted
from tests.waiting import wait_for

SCRIPT = Path(planted.__file__)


@pytest.fixture(autouse=True)
def _keeps_its_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(stages, *options) -> (exit code, results): the command line with planted stages."""
    monkeypatch.setenv("PLANTED_FIRST", str(tmp_path / "first"))
    monkeypatch.setenv("PLANTED_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(command, "SLOWNESS", 1.0)
    results = tmp_path / "results.json"

    def call(stages, *options):
        own = () if "--continue" in options else ("--results", results)
        monkeypatch.setattr("sys.argv", ["script", "--rehearse", *map(str, own), *map(str, options)])
        chosen = [stage if isinstance(stage, running.Stage) else planted.STAGES[stage] for stage in stages]
        code = command.main(chosen, "", "planted", SCRIPT)
        return code, json.loads(results.read_text(encoding="utf-8"))["stages"]

    call.file = results
    return call


def exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_stage_that_hangs_or_crashes_is_recorded_and_the_next_one_runs(run):
    code, stages = run(["hang", "fault", "wrong", "error", "empty", "left_out", "good"])
    assert code == 1
    statuses = {name: stage["status"] for name, stage in stages.items()}
    assert statuses == {
        "hang": "timed out",
        "fault": "crashed",
        "wrong": "failed",
        "error": "failed",
        "empty": "failed",
        "left_out": "skipped",
        "good": "passed",
    }
    assert "SIGSEGV" in stages["fault"]["reason"]
    assert stages["fault"]["figures"] == {"before": 1}, "what was measured before is kept"
    assert stages["wrong"]["reason"] == "two"
    assert "planted" in stages["error"]["reason"]
    assert "ValueError: planted" in stages["error"]["log"]
    assert stages["left_out"]["reason"] == "no such program"
    assert [goal["holds"] for goal in stages["good"]["goals"]] == [False], "a missed goal is no failure"
    wait_for(lambda: not exists(stages["hang"]["figures"]["sleeper"]))


def test_continue_runs_only_what_did_not_pass(run, tmp_path):
    names = ["runs", "repaired", "good"]
    code, stages = run(names)
    assert (code, stages["repaired"]["status"]) == (1, "failed")
    code, stages = run([*names, "left_out"], "--continue", run.file)
    assert code == 0
    assert {name: stage["status"] for name, stage in stages.items()} == {
        "runs": "passed",
        "repaired": "passed",
        "good": "passed",
        "left_out": "skipped",
    }
    assert (tmp_path / "runs").read_text() == "ran\n", "a stage that passed does not run again"
    run(names, "--continue", run.file, "--stages", "runs")
    assert (tmp_path / "runs").read_text() == "ran\n" * 2, "unless it is named"


def test_a_stage_without_its_packages_is_skipped_with_the_reason(run):
    stage = replace(planted.STAGES["good"], packages=("json", "no_such_package"))
    code, stages = run([stage])
    assert code == 0
    assert stages["good"] == {"status": "skipped", "reason": "needs no_such_package, not installed", "seconds": 0.0}


def test_the_time_limit_of_the_whole_run_is_kept(tmp_path):
    results = running.Results(tmp_path / "results.json", {"stages": {}})

    def inside(stage, file):
        return ["python3", str(SCRIPT), "--inside", stage.name, "--record", str(file)]

    chosen = [replace(planted.STAGES["hang"], limit_s=60.0), planted.STAGES["good"]]
    environment = {**os.environ, "PYTHONPATH": str(command.ROOT)}
    running.run_stages(chosen, results, inside, lambda _: environment, budget_s=running.LEAST_S + 0.5, work=tmp_path)
    assert results.status("hang") == "timed out"
    assert results.content["stages"]["hang"]["seconds"] < running.LEAST_S + 5
    assert results.status("good") == "not run"


def test_a_run_that_is_killed_leaves_the_stage_as_interrupted(run, monkeypatch):
    def killed(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run_stage", killed)
    with pytest.raises(KeyboardInterrupt):
        run(["good"])
    stages = json.loads(run.file.read_text(encoding="utf-8"))["stages"]
    assert stages["good"]["status"] == "interrupted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stages", "nothing"), "there is no stage nothing"),
        (("--continue", "missing.json"), "missing.json"),
    ],
)
def test_bad_arguments_name_what_to_change(run, capsys, options, message):
    run(["good"])
    assert run(["good"], *options)[0] == 2
    assert message in capsys.readouterr().err


def test_results_of_a_gpu_are_not_continued_by_a_rehearsal(run, capsys):
    run(["good"])
    content = json.loads(run.file.read_text(encoding="utf-8"))
    run.file.write_text(json.dumps({**content, "rehearsal": False}))
    assert run(["good"], "--continue", run.file)[0] == 2
    assert "has the results of a run on a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("measured", "sense", "limit", "holds"),
    [
        (1.0, "at most", 1.0, True),
        (1.1, "at most", 1.0, False),
        (float("nan"), "at most", 1.0, False),
        (float("nan"), "at least", 1.0, False),
        (float("inf"), "at most", 1.0, False),
        (2, "at least", 1, True),
        ([1], "equals", [1], True),
        (False, "equals", True, False),
    ],
)
def test_values_are_compared_with_their_limits(measured, sense, limit, holds):
    assert compare(measured, sense, limit) is holds

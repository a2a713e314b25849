"""`tunesmith tune`: complete studies of real runs, also killed and continued."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the tune extra is not installed")

from tests.event_lines import event_lines
from tests.integration.conftest import COMMAND, Project
from tests.integration.processes import steps_of, workers_of
from tests.waiting import wait_for
from tunesmith.errors import ExitCode
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status
from tunesmith.rundir.study import StudyDir

GOOD, BAD = 5e-3, 1e-6


@pytest.fixture
def study(project) -> StudyDir:
    """The directory of the study that `tune` uses by default."""
    return StudyDir(project.directory / "runs" / "tiny-tune")


def write_space(project: Project, text: str) -> None:
    (project.directory / "tune.yaml").write_text(text)


def rates(*values: float) -> str:
    return f"search: {{optimization.learning_rate: {list(values)}}}\n"


def tune(project: Project, *arguments: str, code: int = 0, **environment: str) -> dict:
    """Run the command and return its JSON output."""
    ended = project.run("tune", "recipe.yaml", "--json", *arguments, **environment)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return json.loads(ended.stdout)


def outcomes(result: dict) -> list[str]:
    return [trial["outcome"] for trial in result["trials"]]


def test_the_better_learning_rate_is_best_and_the_other_is_pruned(project, study):
    project.write()
    write_space(project, rates(GOOD, BAD) + "pruner: {kind: median, min_trials: 1}\n")
    result = tune(project)
    assert outcomes(result) == ["done", "pruned"]
    assert result["best"] == 1
    better, worse = result["trials"]
    assert better["value"] == list(event_lines(study.trial(1).events, "evaluation"))[-1]["loss"]
    assert worse["value"] is None
    # Pruned at the first evaluation that a finished trial has as well, with its state saved.
    assert worse["reason"].startswith("pruned at step 4: 6.")
    assert worse["step"] < worse["total_steps"]
    assert read_status(study.trial(2).status).phase == "preempted"
    assert study.trial(2).checkpoint(worse["step"]).is_dir()
    page = study.report.read_text()
    assert "pruned at step 4" in page
    assert page.count("<figure") == 2
    best = study.best_recipe.read_text()
    assert "learning_rate: 0.005" in best
    # The file is complete by itself: its paths do not depend on the directory, and it trains what the trial trained.
    full = RunDir(project.directory / "full")
    command = [str(COMMAND), "train", str(study.best_recipe), "--run-dir", str(full.root)]
    trained = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(full.plan.read_text())["recipe"]["name"] == "tiny-best"
    assert steps_of(full) == steps_of(study.trial(1))
    # Complete: the same command trains nothing. A different recipe or space is another study.
    assert tune(project) == result
    write_space(project, rates(GOOD, 1e-4))
    refused = project.run("tune", "recipe.yaml")
    assert refused.returncode == ExitCode.BAD_INPUT
    assert "search.optimization.learning_rate" in refused.stderr


def test_a_killed_tuner_is_continued_and_no_trial_is_started_twice(project, study, tmp_path):
    """Killed before a run is started, while it trains, after it, and between the decision to prune and the stop."""
    project.write()
    write_space(project, rates(BAD, GOOD, 2e-6) + "pruner: {kind: median, min_trials: 2}\n")

    def start(fault: str) -> subprocess.Popen:
        return project.start("tune", "recipe.yaml", TUNESMITH_FAULT=fault, TUNESMITH_FAULT_UNTIL=str(tmp_path))

    killed = start("tune.proposed=kill")
    assert killed.wait() == -signal.SIGKILL
    assert not study.trial(1).root.exists()

    killed = start("step.done:6=hang")
    reached = tmp_path / "step.done:6.reached"
    wait_for(reached.exists, processes=[killed])
    killed.kill()
    killed.wait()
    assert workers_of(study.trial(1))  # it continues without the tuner
    killed = start("tune.finished:2=kill")
    (tmp_path / "step.done:6").touch()
    assert killed.wait() == -signal.SIGKILL
    killed = start("tune.pruned=kill,step.forward:9=await_term")  # the third trial blocks until it is stopped
    assert killed.wait() == -signal.SIGKILL

    result = tune(project)
    assert outcomes(result) == ["done", "done", "pruned"]
    assert result["best"] == 2
    for number in (1, 2, 3):
        assert [start["attempt"] for start in event_lines(study.trial(number).events, "start")] == [1]
        assert not workers_of(study.trial(number))
    assert sorted(path.name for path in study.root.glob("trial-*")) == [f"trial-{n:04d}" for n in (1, 2, 3)]


def test_a_killed_trial_is_resumed(project, study, tmp_path):
    """Its launcher is killed; the worker saves its state."""
    project.write()
    write_space(project, rates(GOOD))
    running = project.start(
        "tune", "recipe.yaml", TUNESMITH_FAULT="step.done:6=hang", TUNESMITH_FAULT_UNTIL=str(tmp_path)
    )
    wait_for((tmp_path / "step.done:6.reached").exists, processes=[running])
    launcher = int(study.trial(1).lock.read_text())
    os.kill(launcher, signal.SIGKILL)
    (tmp_path / "step.done:6").touch()
    output, errors = running.communicate()
    assert running.returncode == 0, output + errors
    starts = list(event_lines(study.trial(1).events, "start"))
    assert [start["attempt"] for start in starts] == [1, 2]
    assert starts[1]["step"] > 0


def test_a_stopped_tuner_saves_its_trials_and_continues(project, study):
    project.write(optimization={"epochs": 40})
    write_space(project, rates(GOOD) + "steps_per_trial: 12\n")
    running = project.start("tune", "recipe.yaml", TUNESMITH_FAULT="step.forward:4=await_term")
    wait_for(lambda: list(event_lines(study.trial(1).events, "step")), processes=[running])
    running.send_signal(signal.SIGTERM)
    output, errors = running.communicate()
    assert running.returncode == ExitCode.PREEMPTED, output + errors
    assert read_status(study.trial(1).status).phase == "preempted"
    assert not workers_of(study.trial(1))
    result = tune(project)
    assert outcomes(result) == ["done"]
    assert result["trials"][0]["total_steps"] == 12
    assert "max_steps" not in study.best_recipe.read_text()  # the best recipe trains in full


def test_refused_values_fail_their_trial_and_all_failed_is_a_failure(project, study):
    """By the plan: the model has no such modules."""
    project.write()
    write_space(project, "search: {method.target_modules: [[x_proj], [y_proj]]}\nparallel_trials: 2\n")
    result = tune(project, code=ExitCode.FAULT)
    assert outcomes(result) == ["failed", "failed"]
    assert ["x_proj" in trial["reason"] for trial in result["trials"]] == [True, False]
    assert result["best"] is None
    assert not study.best_recipe.exists()
    assert "y_proj" in study.report.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "data.train=[none.jsonl]"), "none.jsonl"),
        (("--on", "slurm"), "cluster file not found"),
        (("--study", "."), "not a study"),
    ],
)
def test_what_fails_every_trial_is_an_error_before_the_first(project, study, arguments, words):
    project.write()
    write_space(project, rates(GOOD))
    refused = project.run("tune", "recipe.yaml", *arguments)
    assert refused.returncode == ExitCode.BAD_INPUT, refused.stdout
    assert words in refused.stderr
    assert not list(project.directory.rglob("trial-*"))
    assert not Path(project.directory / "study.json").exists()


def test_a_study_without_trials_may_change(project):
    project.write()
    for model in ("missing", "elsewhere"):
        write_space(project, rates(GOOD, len(model) * 1e-4))
        refused = project.run("tune", "recipe.yaml", "--set", f"model.base={model}")
        assert refused.returncode == ExitCode.BAD_INPUT, refused.stdout
        assert model in refused.stderr


@pytest.mark.soak
@pytest.mark.cluster
def test_trials_run_on_ray(project, study):
    """Each starts a Ray cluster of its own on this machine."""
    pytest.importorskip("ray", reason="the ray extra is not installed")
    project.write()
    write_space(project, rates(BAD, GOOD))
    result = tune(project, "--on", "ray")
    assert outcomes(result) == ["done", "done"]
    assert result["best"] == 2
    assert json.loads(study.trial(2).launch.read_text())["backend"] == "ray"
    assert tune(project) == result  # the back end is that of the study

"""A run that is interrupted and resumed is one run in its tracker, as its event log has it."""

from tests.integration.conftest import Project
from tests.tracking import readers
from tests.tracking.conftest import recorded_series
from tests.tracking.test_trackers import require_equal
from tunesmith.rundir.paths import RunDir
from tunesmith.tracking.state import read_state, state_file


def test_a_resumed_run_is_one_run_in_tensorboard(project: Project):
    recipe = project.write(tracking=["tensorboard"])
    interrupted = project.run("train", recipe, "--run-dir", "run", TUNESMITH_FAULT="step.update:5=term")
    run = RunDir(project.directory / "run")
    assert interrupted.returncode == 75, interrupted.stdout + interrupted.stderr
    assert read_state(state_file(run, "tensorboard")).closed == "preempted"
    resumed = project.run("resume", "run")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "warning" not in resumed.stdout
    assert read_state(state_file(run, "tensorboard")).closed == "done"
    require_equal(readers.tensorboard(run.root), recorded_series(run.events), "tensorboard")

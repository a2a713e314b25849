"""The run directory is renamed, deleted or replaced while a run is in progress."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import Project, make_project
from tests.integration.processes import rows_by_step, workers_of
from tests.waiting import LIMIT_S, wait_for
from tunesmith.rundir.paths import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_llama, chat_rows) -> Project:
    return make_project(tmp_path_factory.mktemp("lost"), tiny_llama, chat_rows)


@pytest.fixture(scope="module")
def recipe(project) -> Path:
    return project.write(evaluation={"num_answers": 0}, optimization={"epochs": 1})


@pytest.fixture(scope="module")
def finished(project, recipe) -> RunDir:
    return project.train(recipe, "finished")


@contextmanager
def in_step(project: Project, recipe: Path, run: RunDir, *arguments: str) -> Iterator[subprocess.Popen]:
    """A run that is in the middle of step 3 during the block, and continues afterwards."""
    until = project.directory / f"{run.name}.until"
    fault = {"TUNESMITH_FAULT": "step.update:3=hang", "TUNESMITH_FAULT_UNTIL": str(until)}
    running = project.start("train", recipe, "--run-dir", str(run.root), *arguments, **fault)
    wait_for(Path(f"{until}.reached").exists, processes=[running])
    yield running
    until.touch()


def ended(running: subprocess.Popen, run: RunDir) -> str:
    """Require an end with exit code 1 and one clear error; return it."""
    output, errors = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 1, output + errors
    assert "Done" not in output
    assert "step 4/" not in output
    assert "Traceback" not in output + errors
    assert errors.count("error:") == 1, errors
    wait_for(lambda: not workers_of(run))
    return errors


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_renamed_run_ends_and_is_resumed_under_its_new_name(project, recipe, finished):
    run, renamed = RunDir(project.directory / "before"), project.directory / "after"
    with in_step(project, recipe, run) as running:
        run.root.rename(renamed)
    errors = ended(running, run)
    assert "the run directory was deleted or renamed while the run was in progress" in errors
    assert f"tunesmith resume {renamed}" in errors
    assert not run.root.exists()
    resumed = project.run("resume", str(renamed))
    assert resumed.returncode == 0, resumed.stderr
    assert rows_by_step(RunDir(renamed)) == rows_by_step(finished)


@pytest.mark.parametrize("ranks", [1, 2])
def test_deleted_run_ends_and_rebuilds_nothing(project, recipe, ranks):
    run = RunDir(project.directory / f"deleted-{ranks}")
    with in_step(project, recipe, run, "--set", f"resources.workers={ranks}") as running:
        shutil.rmtree(run.root)
    assert "the run directory was deleted or renamed" in ended(running, run)
    assert not run.root.exists()


def test_run_that_was_replaced_by_another_leaves_that_unchanged(project, recipe, finished):
    run = RunDir(project.directory / "replaced")
    with in_step(project, recipe, run) as running:
        run.root.rename(project.directory / "away")
        shutil.copytree(finished.root, run.root)
        before = contents(run.root)
    errors = ended(running, run)
    assert "was replaced by that of another run" in errors
    assert contents(run.root) == before

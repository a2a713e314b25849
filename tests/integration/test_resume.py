"""A killed, preempted or damaged run ends bit-identical to an uninterrupted one."""

import os
import random
import shutil
import signal
import time

import pytest

from tests.event_lines import event_lines
from tests.integration.conftest import Project, make_project
from tests.waiting import LIMIT_S, wait_for
from tunesmith.rundir.ledger import read_ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status

cold = pytest.mark.cold(reason="signals: the worker must be the process that its launcher started")

LORA = {"kind": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1}
FULL = {"kind": "full"}


def losses(run: RunDir) -> dict[int, float]:
    """Return the training loss of every step; for a repeated step, the later one."""
    return {event["step"]: event["loss"] for event in event_lines(run.events, "step")}


def weights(run: RunDir) -> dict[str, bytes]:
    """Return the tensor files of the newest checkpoint."""
    newest = max(path for path in run.checkpoints.iterdir() if path.name.startswith("step-") and "." not in path.name)
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


def rows_of(run: RunDir) -> dict[int, tuple]:
    return {step: tuple(entry.rows for entry in entries) for step, entries in read_ledger(run).items()}


@pytest.mark.parametrize("method", [pytest.param(LORA, marks=cold), FULL], ids=["lora", "full"])
def test_run_killed_at_a_random_step_resumes_bit_for_bit(project, method):
    recipe = project.write(method=method, optimization={"neftune_alpha": 5.0})
    uninterrupted = project.train(recipe, "uninterrupted")
    total = len(losses(uninterrupted))
    assert total >= 8

    step = random.Random(os.getpid()).randint(1, total - 1)
    result = project.run("train", recipe, "--run-dir", "killed", TUNESMITH_FAULT=f"step.update:{step}=kill")
    killed = RunDir(project.directory / "killed")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "SIGKILL" in result.stderr + result.stdout
    resumed = project.run("resume", "killed")
    assert resumed.returncode == 0, f"killed at {step}: {resumed.stdout}{resumed.stderr}"

    assert losses(killed) == losses(uninterrupted), f"killed at {step}"
    assert weights(killed) == weights(uninterrupted), f"killed at {step}"
    assert rows_of(killed) == rows_of(uninterrupted)
    proofs = project.run("prove", "killed")
    assert proofs.returncode == 0, proofs.stdout + proofs.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny_llama, chat_rows) -> Project:
    """A project for tests that use one uninterrupted run."""
    return make_project(tmp_path_factory.mktemp("shared"), tiny_llama, chat_rows)


@pytest.fixture(scope="module")
def finished(shared, warm_pool) -> RunDir:
    """A completed run. Read-only: copy it before you change it."""
    return shared.train(shared.write(), "finished", **warm_pool.environment())


@pytest.fixture(scope="module")
def uninterrupted(shared, warm_pool) -> RunDir:
    """A completed run of 30 epochs, long enough to be interrupted."""
    recipe = shared.write("long.yaml", optimization={"epochs": 30})
    return shared.train(recipe, "uninterrupted", **warm_pool.environment())


@cold
def test_sigterm_saves_and_the_same_command_resumes(shared, uninterrupted):
    project, recipe = shared, shared.directory / "long.yaml"

    process = project.start("train", recipe, "--run-dir", "stopped", TUNESMITH_FAULT="step.forward:4=await_term")
    stopped = RunDir(project.directory / "stopped")
    wait_for_step(stopped, 3)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # a second signal has no effect
    output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75, output + errors
    status = read_status(stopped.status)
    assert status is not None
    assert status.phase == "preempted"
    assert stopped.checkpoint(status.step).is_dir()

    again = project.run("train", recipe, "--run-dir", "stopped")
    assert again.returncode == 0, again.stdout + again.stderr
    assert losses(stopped) == losses(uninterrupted)
    assert weights(stopped) == weights(uninterrupted)


@cold
def test_worker_stops_with_its_killed_launcher_and_the_same_command_resumes(shared, uninterrupted):
    project, recipe = shared, shared.directory / "long.yaml"
    process = project.start("train", recipe, "--run-dir", "orphan")
    orphan = RunDir(project.directory / "orphan")
    wait_for_step(orphan, 3)
    process.kill()
    process.wait()
    wait_for(lambda: (status := read_status(orphan.status)) is not None and status.phase == "preempted")
    again = project.run("train", recipe, "--run-dir", "orphan")
    assert again.returncode == 0, again.stdout + again.stderr
    assert weights(orphan) == weights(uninterrupted)


def wait_for_step(run: RunDir, step: int) -> None:
    wait_for(lambda: any(event["step"] >= step for event in event_lines(run.events, "step")))


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [flip_bit, lambda p: os.truncate(p, p.stat().st_size // 2), os.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_damaged_newest_checkpoint_is_named_and_the_previous_one_used(shared, finished, tmp_path, name, damage):
    run = RunDir(shared.directory / tmp_path.name)
    shutil.copytree(finished.root, run.root)
    steps = sorted(int(path.name[5:]) for path in run.checkpoints.iterdir())
    reopen(run)
    damage(run.checkpoint(steps[-1]) / name)
    resumed = shared.run("resume", run.root)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    (event,) = list(event_lines(run.events, "resume"))
    assert event["step"] == steps[-2]
    assert name in event["set_aside"][0]["why"]
    assert f"step-{steps[-1]:08d}" in resumed.stdout + resumed.stderr
    assert (run.checkpoints / f"step-{steps[-1]:08d}.corrupt").is_dir()
    assert losses(run) == losses(finished)
    assert weights(run) == weights(finished)


def reopen(run: RunDir) -> None:
    """Restore the state just after the last checkpoint, as if the run had been killed there."""
    run.status.unlink()
    shutil.rmtree(run.export)
    kept = [line for line in run.events.read_text().splitlines() if '"kind":"end"' not in line]
    run.events.write_text("".join(line + "\n" for line in kept))


def test_resume_with_a_changed_recipe_is_rejected_with_the_difference(shared, finished):
    recipe = shared.write("changed.yaml", optimization={"learning_rate": 1e-3})
    result = shared.run("train", recipe, "--run-dir", "finished")
    assert result.returncode == 2
    assert "learning_rate" in result.stderr
    assert "0.001" in result.stderr
    assert "Traceback" not in result.stderr


def test_finished_run_is_not_retrained(shared, finished):
    before = finished.events.read_bytes()
    result = shared.run("train", shared.directory / "recipe.yaml", "--run-dir", "finished")
    assert result.returncode == 0
    assert finished.events.read_bytes() == before

"""Checkpoints after damage and kills: the scan finds the newest valid one, never a mixture of two."""

import os
import shutil
import subprocess

import pytest
import torch

from tunesmith.configs.sections.optimization import Optimization
from tunesmith.errors import RunFault
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint.checkpoints import (
    MODEL,
    OPTIMIZER,
    STATE,
    committed,
    load_optimizer,
    load_state,
    load_trained_parameters,
    newest_valid,
    require_same,
    retain,
    save_checkpoint,
    sweep,
)
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.plain import PlainEngine


def engine_at(step: int, num_rows: int = 5) -> PlainEngine:
    """An engine with random weights and moments, seeded by the step, after one real update."""
    torch.manual_seed(step)
    layers = torch.nn.Sequential(torch.nn.Linear(7, num_rows), torch.nn.Linear(num_rows, 3))
    engine = PlainEngine(layers, dict(layers.named_parameters()), Optimization(), Ranks(0, 0, 1), device="cpu")
    layers(torch.randn(4, 7)).square().sum().backward()
    engine.optim_step(1e-3)
    return engine


def save(run: RunDir, step: int) -> None:
    state = RunState(step=step, num_updates=step)
    save_checkpoint(run, state, engine_at(step), attempt=1, fingerprints={"model": "m"})


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def test_a_checkpoint_round_trips_bitwise(run):
    save(run, 3)
    scan = newest_valid(run)
    assert scan.path == run.checkpoint(3)
    engine = engine_at(3)
    for stored, live in (
        (load_trained_parameters(scan.path), dict(engine.model_tensors())),
        (load_optimizer(scan.path), dict(engine.optimizer_tensors())),
    ):
        assert list(stored) == sorted(live)
        assert all(torch.equal(stored[name], live[name]) for name in live)
        assert any(tensor.abs().max() > 0 for tensor in live.values())
    state, fingerprints = load_state(scan.path)
    assert state == RunState(step=3, num_updates=3)
    assert fingerprints == {"model": "m"}


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def truncate(path):
    os.truncate(path, path.stat().st_size - 2)


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [flip_bit, truncate, empty, os.unlink])
@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, STATE, "manifest.json"])
def test_a_damaged_newest_checkpoint_is_set_aside_for_the_previous_one(run, name, damage):
    save(run, 10)
    save(run, 20)
    damage(run.checkpoint(20) / name)
    scan = newest_valid(run)
    assert scan.path == run.checkpoint(10)
    (aside,) = scan.set_aside
    assert aside["path"].endswith("step-00000020.corrupt")
    assert name in aside["why"] or name == "manifest.json"
    assert os.path.isdir(aside["path"])
    assert newest_valid(run).set_aside == []


def test_a_checkpoint_with_files_of_two_steps_is_invalid(run):
    save(run, 10)
    save(run, 20)
    shutil.copy(run.checkpoint(10) / MODEL, run.checkpoint(20) / MODEL)
    assert newest_valid(run).path == run.checkpoint(10)


def test_the_scan_finds_no_valid_checkpoint(run):
    save(run, 10)
    flip_bit(run.checkpoint(10) / MODEL)
    scan = newest_valid(run)
    assert scan.path is None
    assert len(scan.set_aside) == 1


def test_retention_keeps_the_newest_and_the_best(run):
    for step in (10, 20, 30, 40, 50):
        save(run, step)
    assert retain(run, keep_last=2, best_step=20) == [10, 30]
    assert [path.name for path in committed(run)] == ["step-00000020", "step-00000040", "step-00000050"]


def test_a_checkpoint_of_another_model_is_rejected_with_the_difference(run):
    save(run, 1)
    _, fingerprints = load_state(run.checkpoint(1))
    with pytest.raises(RunFault, match=r"another model .*checkpoint m, this run other"):
        require_same(fingerprints, {"model": "other"}, run.checkpoint(1))


SAVE_TWO = """
import sys
from pathlib import Path
import torch
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint.checkpoints import retain, save_checkpoint
from tunesmith.training.engine.plain import PlainEngine
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.checkpoint.state import RunState
run = RunDir(Path(sys.argv[1]))
for step in (10, 20):
    weights = {"w": torch.nn.Parameter(torch.full((64, 64), float(step)))}
    engine = PlainEngine(torch.nn.Identity(), weights, Optimization(), Ranks(0, 0, 1), device="cpu")
    save_checkpoint(run, RunState(step=step), engine, attempt=1, fingerprints={})
    retain(run, 1, None)
"""


@pytest.mark.parametrize("stage", ["begin", "files", "manifest", "rename", "done"])
def test_a_kill_during_a_save_leaves_one_valid_checkpoint(run, stage, warm_python):
    environment = {**os.environ, "TUNESMITH_FAULT": f"commit.{stage}:2=kill"}
    ended = subprocess.run([warm_python, "-c", SAVE_TWO, str(run.root)], env=environment, capture_output=True)
    assert ended.returncode == -9, ended.stderr.decode()
    scan = newest_valid(run)
    assert scan.path is not None
    assert scan.set_aside == []
    step = 20 if stage in ("rename", "done") else 10
    assert scan.path == run.checkpoint(step)
    loaded = load_trained_parameters(scan.path)["w"]
    assert torch.equal(loaded, torch.full((64, 64), float(step)))
    sweep(run)
    assert all(".tmp" not in path.name for path in run.checkpoints.iterdir())


def test_a_full_disk_leaves_only_the_previous_checkpoint(run, monkeypatch):
    save(run, 10)
    monkeypatch.setenv("TUNESMITH_FAULT", "commit.files=raise")
    with pytest.raises(OSError, match="No space left"):
        save(run, 20)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000010"]

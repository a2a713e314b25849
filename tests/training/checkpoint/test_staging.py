"""Checkpoints written asynchronously: the same bytes, as of the copy, and no write error is lost."""

import os
import subprocess
import threading

import pytest
import torch

from tests.training.checkpoint.test_checkpoints import engine_at, save
from tests.waiting import LIMIT_S
from tunesmith.errors import RunFault
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint.checkpoints import (
    MODEL,
    OPTIMIZER,
    Content,
    load_trained_parameters,
    newest_valid,
    tensors_of,
    write_checkpoint,
)
from tunesmith.training.checkpoint.staging import Background, Staging
from tunesmith.training.checkpoint.state import RunState


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def staged(engine, step: int) -> tuple[Content, Staging]:
    content, staging = Content.of(RunState(step=step, num_updates=step), engine, {"model": "m"}), Staging()
    staging.fill({**content.shapes, **content.moments}, tensors_of(engine))
    return content, staging


def test_a_staged_checkpoint_equals_a_synchronous_one_byte_for_byte(run, tmp_path):
    save(run, 3)
    content, staging = staged(engine := engine_at(3), 3)
    with torch.no_grad():
        for parameter in engine.parameters.values():
            parameter.zero_()  # the loop continues: the copy must not change
    other = RunDir(tmp_path / "other")
    other.root.mkdir()
    write_checkpoint(other, content, staging.tensors(), attempt=1)
    assert newest_valid(other).path == other.checkpoint(3)
    for name in (MODEL, OPTIMIZER, "state.json", "manifest.json"):
        assert (other.checkpoint(3) / name).read_bytes() == (run.checkpoint(3) / name).read_bytes(), name


def test_the_buffer_is_reused_for_newer_weights(run):
    content, staging = staged(engine_at(1), 1)
    buffer = staging._buffer
    newer = engine_at(2)
    staging.fill({**content.shapes, **content.moments}, tensors_of(newer))
    assert staging._buffer is buffer
    expected = dict(tensors_of(newer))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in staging.tensors())
    with pytest.raises(ValueError, match="missing tensor"):
        staging.fill({**content.shapes, **content.moments}, newer.model_tensors())


def test_one_task_runs_at_a_time_and_the_next_waits():
    background, released, order = Background(), threading.Event(), []

    def slow() -> None:
        released.wait(LIMIT_S)
        order.append("first")

    background.start(slow)
    background.check()
    threading.Timer(0.2, released.set).start()
    background.start(lambda: order.append("second"))
    assert order[:1] == ["first"]
    background.wait()
    assert order == ["first", "second"]


@pytest.mark.parametrize("method", ["check", "wait", "start"])
def test_an_exception_of_the_background_task_is_raised_in_the_loop(method):
    background = Background()

    def fails() -> None:
        raise OSError(28, "No space left on device")

    background.start(fails)
    thread = background._thread
    assert thread is not None
    thread.join(LIMIT_S)
    with pytest.raises(OSError, match="No space left"):
        background.start(lambda: None) if method == "start" else getattr(background, method)()
    background.wait()


def test_a_writer_that_ended_without_an_error_is_reported():
    background = Background()
    background.start(lambda: None)
    assert background._thread is not None
    background._thread.join()
    background._finished = False
    with pytest.raises(RunFault, match="without an error message"):
        background.check()


TWO_IN_THE_BACKGROUND = """
import sys, time
from pathlib import Path
import torch
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint.checkpoints import Content, retain, tensors_of, write_checkpoint
from tunesmith.training.engine.plain import PlainEngine
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.checkpoint.staging import Background, Staging
from tunesmith.training.checkpoint.state import RunState
run, staging, background = RunDir(Path(sys.argv[1])), Staging(), Background()
weights = {"w": torch.nn.Parameter(torch.zeros(1024, 1024))}
engine = PlainEngine(torch.nn.Identity(), weights, Optimization(), Ranks(0, 0, 1), device="cpu")
for step in (10, 20):
    with torch.no_grad():
        weights["w"].fill_(step)
    content = Content.of(RunState(step=step), engine, {})
    background.wait()
    staging.fill({**content.shapes, **content.moments}, tensors_of(engine))
    def work(content=content):
        write_checkpoint(run, content, staging.tensors(), attempt=1)
        retain(run, 1, None)
    background.start(work)
while True:  # the loop continues with the next steps
    background.check()
    time.sleep(0.01)
"""


@pytest.mark.parametrize("stage", ["commit.begin", "commit.files", "commit.manifest", "commit.rename"])
def test_a_kill_during_a_background_write_keeps_the_previous_checkpoint(run, stage, warm_python):
    environment = {**os.environ, "TUNESMITH_FAULT": f"{stage}:2=kill"}
    call = [warm_python, "-c", TWO_IN_THE_BACKGROUND, str(run.root)]
    ended = subprocess.run(call, env=environment, capture_output=True, timeout=LIMIT_S)
    assert ended.returncode == -9, ended.stderr.decode()
    scan = newest_valid(run)
    assert scan.path is not None
    assert scan.set_aside == []
    step = 20 if stage == "commit.rename" else 10
    assert scan.path == run.checkpoint(step)
    assert torch.equal(load_trained_parameters(scan.path)["w"], torch.full((1024, 1024), float(step)))

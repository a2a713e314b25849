"""What a rank computes, reads and writes counts as progress, so that a slow rank is not taken for one that hangs."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.export.test_export import LORA, Trained
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.evaluation.answers import answer, sample_prompts
from tunesmith.evaluation.log_probabilities import log_probabilities
from tunesmith.evaluation.score import score_index
from tunesmith.modeling.loading.load import load_model
from tunesmith.progress import Progress, progress_of
from tunesmith.rundir.commit import hash_file
from tunesmith.training.checkpoint.checkpoints import gather_for_save, load_trained_parameters, save_checkpoint
from tunesmith.training.checkpoint.mirror import Mirror
from tunesmith.training.checkpoint.staging import Background, Staging
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.build import build_engine
from tunesmith.training.engine.protocol import Engine

BLOCKS = 2
"""Of the tiny model."""


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory) -> Trained:
    return Trained(tiny_llama, tmp_path_factory.mktemp("progress") / "run", LORA)


@pytest.fixture(scope="module")
def engine(trained) -> Engine:
    return build_engine(trained.plan, Ranks(0, 0, 1))


def units_of(work: Callable[[], object]) -> int:
    progress = progress_of(threading.get_ident())
    before = progress.units
    work()
    return progress.units - before


def test_every_block_that_is_computed_counts(trained, engine):
    index, loss = TokenIndex.open(trained.run.root / "index"), engine.loss_module
    read_and_computed = (1 + BLOCKS) * index.num_documents
    assert units_of(lambda: score_index(loss, index, max_sequences=1)) == read_and_computed
    assert units_of(lambda: log_probabilities(loss, index)) >= BLOCKS
    prompts = sample_prompts(index, trained.tokenizer, 1)
    items = []
    units = units_of(lambda: items.extend(answer(loss.model, trained.tokenizer, prompts, max_new_tokens=5)))
    assert len(items) == 1
    assert BLOCKS <= units <= 5 * BLOCKS


def test_every_tensor_that_is_read_or_written_counts(trained, engine, tiny_llama):
    count = len(engine.shapes())
    assert units_of(lambda: load_model(tiny_llama, dtype=torch.float32)) >= 10
    assert units_of(lambda: gather_for_save(engine)) == 3 * count, "weights and two moments"
    assert units_of(lambda: Staging().fill(engine.shapes(), engine.model_tensors())) == count
    path = save_checkpoint(trained.run, RunState(step=1), engine, attempt=1, fingerprints={})
    assert units_of(lambda: hash_file(path / "model.safetensors")) >= 1
    assert units_of(lambda: engine.load(load_trained_parameters(path), None, 0)) == count


def test_a_thread_that_waits_for_the_writer_shares_its_progress(monkeypatch):
    monkeypatch.setattr("tunesmith.training.checkpoint.staging._RELAY_S", 0.01)
    background, seen = Background(), threading.Event()
    waiting = progress_of(threading.get_ident())
    before = waiting.units

    def work() -> None:
        while waiting.units == before:
            progress_of(threading.get_ident()).advance()
        seen.set()

    background.start(work)
    background.wait()
    assert seen.is_set()


def test_every_block_of_an_upload_counts(trained, engine, tmp_path):
    """fsspec's memory file system transfers files block by block, as remote ones do."""
    path = save_checkpoint(trained.run, RunState(step=2), engine, attempt=1, fingerprints={})
    mirror = Mirror(f"memory://{tmp_path}", trained.run, 1)
    assert units_of(lambda: mirror.send(path)) >= len(list(Path(path).iterdir())) - 1
    assert mirror.steps() == [2]


def test_the_longest_unit_is_measured_from_the_last_restart(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tunesmith.progress.time.monotonic", lambda: now[0])
    progress = Progress()
    for seconds in (1.0, 4.0, 2.0):
        now[0] += seconds
        progress.advance()
    assert (progress.units, progress.longest_s) == (3, 4.0)
    progress.restart()
    now[0] += 3.0
    progress.advance()
    assert (progress.units, progress.longest_s) == (4, 3.0)

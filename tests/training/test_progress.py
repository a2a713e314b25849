"""What a rank computes, reads and writes counts as progress, so that a slow rank is not taken for one that hangs."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.export.test_export import LORA, Trained
from tests.waiting import wait_for
from tunesmith.data.index.pages import read_page_hashes
from tunesmith.data.index.token_index import FACTS, FILES, TokenIndex
from tunesmith.evaluation.answers import answer, sample_prompts
from tunesmith.evaluation.few_shot import write_few_shot
from tunesmith.evaluation.log_probabilities import log_probabilities
from tunesmith.evaluation.score import score_index
from tunesmith.evaluation.trained import load_trained
from tunesmith.model_files import fault_of
from tunesmith.modeling.adapters.output_ratio import output_ratio
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.parts import causal_lm
from tunesmith.progress import Progress, progress_of
from tunesmith.rundir.commit import hash_file, read_manifest
from tunesmith.rundir.ledger import Ledger, check_ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint.checkpoints import gather_for_save, load_trained_parameters, save_checkpoint
from tunesmith.training.checkpoint.mirror import Mirror
from tunesmith.training.checkpoint.staging import Background, Staging
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.build import build_engine
from tunesmith.training.engine.protocol import Engine
from tunesmith.training.export.files import plain_weights, write_model

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


def test_every_file_and_row_that_is_read_counts(trained, tmp_path):
    index = TokenIndex.open(trained.run.root / "index")
    hashes = read_page_hashes(index.directory)
    assert hashes is not None
    num_files = len([FACTS, *FILES])
    assert units_of(lambda: hashes.fault(index.directory)) == num_files
    units = units_of(lambda: write_few_shot(tmp_path / "x", index, index, trained.tokenizer, shots=1, context=512))
    assert units == index.num_documents + num_files
    rows = [[1, 5, 6], [1, 7]]
    assert units_of(lambda: output_ratio(trained.model, rows)) == len(rows)


def test_every_weight_that_is_loaded_or_exported_counts(trained, engine, tiny_llama, tmp_path):
    path = save_checkpoint(trained.run, RunState(step=3), engine, attempt=1, fingerprints={})
    base = units_of(lambda: load_model(tiny_llama, dtype=torch.float32, attention=PACKED))
    assert units_of(lambda: load_trained(trained.plan, path)) == base + len(engine.shapes())
    assert units_of(lambda: fault_of(path)) == len(read_manifest(path)["files"])
    written = units_of(lambda: write_model(trained.model, trained.plan, tmp_path, torch.float32))
    assert written >= len(plain_weights(causal_lm(trained.model), torch.float32))


def test_every_thousand_lines_of_a_ledger_count(tmp_path):
    ledger = Ledger(RunDir(tmp_path), 0, 1)
    for step in range(2100):
        ledger.write(step, [step], [step], 1, 1, (1, 1))
    assert units_of(lambda: check_ledger(RunDir(tmp_path), 1)) == 2


@pytest.fixture
def saved_by(trained, monkeypatch):
    """saved_by(write) -> nothing; `write` writes the files of an export in place of transformers, and is polled."""
    monkeypatch.setattr("tunesmith.training.export.files.wait", lambda futures, timeout: None)

    def save(write: Callable[[Path], None], directory: Path) -> None:
        monkeypatch.setattr(type(causal_lm(trained.model)), "save_pretrained", lambda _, path: write(Path(path)))
        write_model(trained.model, trained.plan, directory, torch.float32)

    return save


def test_files_of_a_model_that_grow_count_until_it_is_saved(saved_by, tmp_path):
    watched, seen = threading.get_ident(), []

    def write(directory: Path) -> None:
        assert threading.get_ident() != watched, "while it saves, the watched thread reports no progress"
        for number in range(3):
            before = progress_of(watched).units
            (directory / f"{number}.safetensors").write_bytes(b"0")
            wait_for(lambda: progress_of(watched).units > before, every_s=0.001)  # noqa: B023
            seen.append(number)

    saved_by(write, tmp_path)
    assert seen == [0, 1, 2]


def test_files_that_are_renamed_while_a_model_is_saved_do_not_fail_it(saved_by, tmp_path):
    """As safetensors does when a file is complete."""
    renames = (
        "import os, sys; os.chdir(sys.argv[1])\nfor _ in range(5000): open('.tmp', 'w').close(); os.rename('.tmp', 'x')"
    )

    def write(directory: Path) -> None:
        subprocess.run([sys.executable, "-S", "-c", renames, str(directory)], check=True)

    saved_by(write, tmp_path)
    assert (tmp_path / "x").is_file()


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

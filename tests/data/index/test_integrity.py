"""Damage to prepared rows and receipts is found and named, whichever file, whatever the damage, whenever it happens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.event_lines import an_event
from tunesmith.configs.plan import ComputeFacts, DataFacts, Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.data.index.integrity import check_data, check_receipts, record_faults, require_intact
from tunesmith.data.index.pages import HASHES, PAGE_BYTES
from tunesmith.data.index.prepare import prepare
from tunesmith.data.index.token_index import FACTS, FILES, IndexWriter, Sample, TokenIndex, write_index
from tunesmith.errors import RunFault
from tunesmith.rundir.commit import MANIFEST, seal
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.ledger import Ledger
from tunesmith.rundir.paths import RunDir


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def swap(path: Path) -> None:
    """Replace the content by that of another file, cut to the same length."""
    other = next(p for p in sorted(path.parent.rglob("*")) if p.is_file() and p.read_bytes() != path.read_bytes())
    size = path.stat().st_size
    path.write_bytes((other.read_bytes() * (1 + size))[:size])


def remove(path: Path) -> None:
    path.unlink()


def add(path: Path) -> None:
    path.with_name(f"{path.name}.copy").write_bytes(b"")


DAMAGES = (flip, truncate, swap, remove, add)


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory, chat_rows) -> tuple[DataFacts, Path]:
    """Facts and run directory of prepared rows: training and validation, with a rejected row."""
    directory = tmp_path_factory.mktemp("prepared")
    rows = [*chat_rows, {"messages": []}]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": ["rows.jsonl"], "validation": 0.2, "max_seq_len": 256, "packing": True, "max_rejects": 1}
    recipe = Recipe(name="t", model={"base": "m"}, task="chat", method={"kind": "full"}, data=data)  # type: ignore[arg-type]
    run = RunDir(directory / "run")
    return prepare(recipe, tiny, recipe_dir=directory, cache=directory / "cache", run=run), run.root


@pytest.fixture
def copy_of(prepared, tmp_path) -> Callable[[], tuple[Plan, RunDir]]:
    """copy_of() -> plan and run of a private copy."""
    facts, run = prepared
    number = 0

    def copied() -> tuple[Plan, RunDir]:
        nonlocal number
        number += 1
        prepared_rows = tmp_path / str(number) / facts.fingerprint
        shutil.copytree(Path(facts.train.index).parent, prepared_rows)
        shutil.copytree(run, tmp_path / str(number) / "run")
        splits = {
            name: getattr(facts, name).model_copy(update={"index": str(prepared_rows / name)})
            for name in ("train", "validation")
        }
        return Plan.model_construct(data=facts.model_copy(update=splits)), RunDir(tmp_path / str(number) / "run")

    return copied


def files_of(plan: Plan) -> list[str]:
    prepared = Path(plan.data.train.index).parent
    return sorted(str(path.relative_to(prepared)) for path in prepared.rglob("*") if path.is_file())


def read_all(index: TokenIndex) -> list[Any]:
    """Each sample and its counts; an error in place of those that cannot be read."""

    def read(number: int) -> Sample | RunFault:
        try:
            assert index.sample_tokens[number] == len(index.sample(number).tokens)
            assert index.sample_supervised[number] == index.sample(number).supervised.sum()
            return index.sample(number)
        except RunFault as error:
            return error

    return [read(number) for number in range(index.num_samples)]


def is_equal(one: Sample, other: Sample) -> bool:
    return (
        np.array_equal(one.tokens, other.tokens)
        and np.array_equal(one.supervised, other.supervised)
        and (one.lengths, one.rows) == (other.lengths, other.rows)
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_named_after_a_run(copy_of, damage):
    plan, run = copy_of()
    assert len(files_of(plan)) == 2 * (len(FILES) + 2) + 5  # both splits, receipts, manifest
    require_intact(plan)
    for name in files_of(plan):
        plan, run = copy_of()
        damage(Path(plan.data.train.index).parent / name)
        with pytest.raises(RunFault, match="the prepared data was damaged") as caught:
            require_intact(plan)
        if name != MANIFEST or damage is add:
            assert name in caught.value.what, caught.value
        assert caught.value.where == str(Path(plan.data.train.index).parent)
        assert "prepared again" in str(caught.value.remedy)
    for name in sorted(path.name for path in run.receipts.iterdir()):
        plan, run = copy_of()
        damage(run.receipts / name)
        if name == MANIFEST and damage is remove:  # the prepared rows have the hashes as well
            assert check_receipts(run, plan).num_files == 4
            continue
        (fault,) = check_receipts(run, plan).faults
        assert str(run.receipts) in fault
        assert name in fault or damage is not add


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damaged_sample_is_read_while_a_run_is_in_progress(copy_of, damage):
    """Also pages that were read before: they are verified each time."""
    undamaged = read_all(TokenIndex.open(Path(copy_of()[0].data.train.index)))
    for name in [FACTS, HASHES, *FILES]:
        index = TokenIndex.open(Path(copy_of()[0].data.train.index))
        index.sample(0)
        damage(index.directory / name)
        samples = read_all(index)
        errors = [sample for sample in samples if isinstance(sample, RunFault)]
        assert all(
            isinstance(sample, RunFault) or is_equal(sample, before)
            for sample, before in zip(samples, undamaged, strict=True)
        )
        if damage in (flip, truncate, swap) and name in FILES:
            assert errors
            assert all(f"train/{name}" in error.what for error in errors)
            assert errors[0].where == str(index.directory)


@pytest.mark.parametrize("damage", [flip, truncate, swap, remove])
def test_no_damaged_index_is_used_when_a_run_starts(copy_of, damage):
    for name in [FACTS, HASHES, *FILES]:
        directory = Path(copy_of()[0].data.train.index)
        damage(directory / name)
        try:
            errors = [sample for sample in read_all(TokenIndex.open(directory)) if isinstance(sample, RunFault)]
        except RunFault as error:
            errors = [error]
        assert errors
        assert name in errors[0].what or name == FACTS, errors[0]


def test_index_of_other_rows_is_rejected(copy_of, tiny, tmp_path):
    plan, _ = copy_of()
    train = Path(plan.data.train.index)
    shutil.rmtree(train)
    write_index(
        tmp_path / "other", [([1, 2], [True, True], 0)], max_seq_len=8, fingerprint=f"{train.parent.name}/train"
    )
    (tmp_path / "other").rename(train)
    with pytest.raises(RunFault, match="does not match its hash"):
        TokenIndex.open(train)
    moved = train.parent.rename(train.parent.with_name("0" * 64))
    with pytest.raises(RunFault, match="belongs to"):
        TokenIndex.open(moved / "validation")


def test_only_the_damaged_page_of_a_large_index_is_rejected(tmp_path):
    writer = IndexWriter(tmp_path / "index")
    number, length = 64, 512
    tokens = np.arange(number * length, dtype=np.uint32)
    writer.add(tokens, np.ones(number * length), np.full(number, length), np.arange(number))
    writer.finish(None, max_seq_len=length, fingerprint="")
    index = TokenIndex.open(tmp_path / "index")
    with open(tmp_path / "index" / "tokens.u32", "r+b") as file:
        file.seek(10 * PAGE_BYTES + 5)
        file.write(b"\xff")
    rejected = [n for n, sample in enumerate(read_all(index)) if isinstance(sample, RunFault)]
    assert rejected == [20, 21]  # 2 documents in each page
    with pytest.raises(RunFault, match=f"4096 bytes from byte {10 * PAGE_BYTES}"):
        index.document(20)


def test_data_of_an_earlier_version_is_verified_when_opened_and_not_rejected(copy_of):
    """An index without hashes of its pages, receipts without a manifest."""
    plan, run = copy_of()
    prepared = Path(plan.data.train.index).parent
    for split in ("train", "validation"):
        (prepared / split / HASHES).unlink()
    (prepared / MANIFEST).unlink()
    seal(prepared)
    (run.receipts / MANIFEST).unlink()
    assert TokenIndex.open(prepared / "train").sample(0).lengths
    result = check_data(plan)
    assert not result.faults
    assert len(result.unverified) == 2
    assert f"{prepared / 'train'} has no hashes of its pages" in result.unverified[0]
    receipts = check_receipts(run, plan)
    assert (receipts.num_files, receipts.faults, receipts.unverified) == (4, [], [])
    flip(run.receipts / "train.jsonl")
    assert "train.jsonl does not match its hash" in check_receipts(run, plan).faults[0]
    flip(prepared / "train" / "document_rows.i64")
    with pytest.raises(RunFault, match=r"document_rows\.i64 does not match its hash"):
        TokenIndex.open(prepared / "train")
    shutil.rmtree(prepared)
    assert check_data(plan).unverified == [f"{prepared} is missing"]
    assert not check_data(plan).faults
    assert "has no hashes" in check_receipts(run, plan).unverified[0]


def an_attempt(run: RunDir, number: int, ranks: int, *, num_ledgers: int, num_steps: int = 1) -> None:
    """An attempt that trained on `ranks` ranks, of which `num_ledgers` have a ledger."""
    log = EventLog(run.events)
    log.write(an_event("start", attempt=number, step=0, world_size=ranks, pid=1, host="h", resumed_from=None))
    for step in range(1, num_steps + 1):
        log.write(an_event("step", step=step, total_steps=9, loss=1.0, skipped=False))
    for rank in range(num_ledgers):
        Ledger(run, rank, number).write(1, [rank], [rank], 1, 1, (1, 1))


def test_each_rank_that_has_trained_has_a_ledger_and_no_other(copy_of):
    """Whatever the number of ranks in the plan: an elastic run may start with fewer."""
    plan, run = copy_of()
    plan = plan.model_copy(update={"compute": ComputeFacts.model_construct(world_size=4)})
    an_attempt(run, 1, 2, num_ledgers=2)
    assert record_faults(run, plan) == []
    an_attempt(run, 2, 4, num_ledgers=2, num_steps=0)  # lost after rank 0 had started, before rank 2 opened its ledger
    an_attempt(run, 3, 1, num_ledgers=1)
    assert record_faults(run, plan) == []
    run.ledger_of(1).unlink()
    assert record_faults(run, plan) == [f"{run.ledger_of(1)} is missing"]


def test_receipts_of_an_earlier_version_are_not_compared_with_rows_that_were_prepared_again(copy_of):
    """They have fewer fields; the plan keeps the fingerprint of the earlier rows."""
    plan, run = copy_of()
    (run.receipts / MANIFEST).unlink()
    assert check_receipts(run, plan).num_files == 4
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"fingerprint": "e" * 64})})
    (run.receipts / "train.jsonl").write_text("{}\n")
    receipts = check_receipts(run, plan)
    assert (receipts.num_files, receipts.faults) == (0, [])
    assert "has no hashes" in receipts.unverified[0]

"""The ledger: which entries count after crashes, and the effect of damage."""

import errno
import json
from pathlib import Path

import pytest

from tunesmith.rundir.ledger import Ledger, check_ledger, read_ledger
from tunesmith.rundir.paths import RunDir


def feed(run: RunDir, attempt: int, steps, rank: int = 0, sync: bool = False) -> None:
    ledger = Ledger(run, rank, attempt)
    for step in steps:
        ledger.write(step, [10 * step + rank], [100 * step + rank], 7, 3, (2, 1))
    ledger.sync()
    ledger.close()


def fed(run: RunDir) -> dict[int, list[tuple[int, int]]]:
    """step -> (attempt, sample) of the valid entries."""
    return {step: [(e.attempt, e.samples[0]) for e in entries] for step, entries in read_ledger(run).items()}


def test_entries_are_read_by_step_with_ranks_in_order(tmp_path):
    run = RunDir(tmp_path)
    feed(run, 1, [1, 2], rank=1)
    feed(run, 1, [1, 2], rank=0)
    assert fed(run) == {1: [(1, 10), (1, 11)], 2: [(1, 20), (1, 21)]}
    entry = read_ledger(run)[2][1]
    assert (entry.rows, entry.num_tokens, entry.supervised_tokens) == ((201,), 7, 3)


def test_numpy_integers_are_written_as_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")
    Ledger(RunDir(tmp_path), 0, 1).write(1, numpy.arange(3), numpy.arange(2), numpy.int64(5), numpy.int64(4), (2, 1))
    (entry,) = read_ledger(RunDir(tmp_path))[1]
    assert (entry.samples, entry.num_tokens) == ((0, 1, 2), 5)


def test_the_later_attempt_counts_from_its_first_step(tmp_path):
    run = RunDir(tmp_path)
    feed(run, 1, range(1, 9))
    feed(run, 2, range(5, 7))  # resumed from step 4 and ended early at 6: 7 and 8 of attempt 1 are void
    assert {step: entries[0][0] for step, entries in fed(run).items()} == {1: 1, 2: 1, 3: 1, 4: 1, 5: 2, 6: 2}


def test_resuming_further_back_voids_the_entries_in_between(tmp_path):
    run = RunDir(tmp_path)
    feed(run, 1, range(1, 7))
    feed(run, 2, range(7, 9))
    feed(run, 3, range(4, 6))  # the checkpoint of 6 was damaged
    assert {step: entries[0][0] for step, entries in fed(run).items()} == {1: 1, 2: 1, 3: 1, 4: 3, 5: 3}


def test_a_later_attempt_with_fewer_ranks_voids_the_entries_of_the_others(tmp_path):
    run = RunDir(tmp_path)
    for rank in (0, 1):
        feed(run, 1, range(1, 5), rank=rank)
    feed(run, 2, range(3, 6), rank=0)
    assert {step: len(entries) for step, entries in fed(run).items()} == {1: 2, 2: 2, 3: 1, 4: 1, 5: 1}


def test_a_killed_rank_does_not_hide_the_entries_of_another(tmp_path):
    run = RunDir(tmp_path)
    feed(run, 1, range(1, 4), rank=0)
    feed(run, 1, range(1, 3), rank=1)
    assert {step: len(entries) for step, entries in fed(run).items()} == {1: 2, 2: 2, 3: 1}


def test_a_torn_line_is_skipped_and_the_next_attempt_starts_a_new_line(tmp_path):
    run = RunDir(tmp_path)
    feed(run, 1, [1, 2, 3])
    path = run.ledger_of(0)
    path.write_bytes(path.read_bytes()[:-20])
    assert list(fed(run)) == [1, 2]
    feed(run, 2, [3])
    assert fed(run)[3] == [(2, 30)]


def test_repeated_entries_are_kept(tmp_path):
    run = RunDir(tmp_path)
    feed(run, 1, [1, 1])
    assert len(read_ledger(run)[1]) == 2


def test_damaged_and_foreign_lines_are_skipped(tmp_path):
    run = RunDir(tmp_path)
    feed(run, 1, [1])
    foreign = [
        {"kind": "ledger"},
        {"kind": "ledger", "step": "2", "attempt": 1, "samples": 3},
        {"kind": "step", "step": 2},
    ]
    with open(run.ledger_of(0), "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in foreign)
        file.write("\x00\x00\x00\n")
    assert list(fed(run)) == [1]


def test_a_full_disk_raises(tmp_path):
    run = RunDir(tmp_path)
    run.ledger.mkdir()
    run.ledger_of(0).symlink_to(Path("/dev/full"))
    with pytest.raises(OSError) as caught:
        Ledger(run, 0, 1).write(1, [1], [1], 1, 1, (1, 1))
    assert caught.value.errno == errno.ENOSPC


def test_a_missing_ledger_is_empty(tmp_path):
    assert read_ledger(RunDir(tmp_path)) == {}


def test_every_changed_line_is_named(tmp_path):
    run = RunDir(tmp_path)
    feed(run, 1, [1, 2, 3])
    feed(run, 1, [1, 2, 3], rank=1)
    assert (check_ledger(run, 2).num_lines, check_ledger(run, 2).faults) == (6, [])
    path = run.ledger_of(0)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        steps_are_missing = len(read_ledger(run)) < 3 or any(len(entries) < 2 for entries in read_ledger(run).values())
        assert check_ledger(run, 2).faults or steps_are_missing, place


def test_missing_and_swapped_ledgers_are_named_and_torn_lines_are_not(tmp_path):
    run = RunDir(tmp_path)
    feed(run, 1, [1, 2, 3])
    feed(run, 1, [1, 2, 3], rank=1)
    with open(run.ledger_of(0), "a") as file:
        file.write('{"kind":"ledger","step":4,"att')  # a crash
    feed(run, 2, [3, 4])
    assert not check_ledger(run, 2).faults
    first, second = run.ledger_of(0), run.ledger_of(1)
    first_text, second_text = first.read_text(), second.read_text()
    first.write_text(second_text)
    second.write_text(first_text)
    faults = check_ledger(run, 2).faults
    assert f"{first}:1: the line does not match its checksum" in faults[0]
    assert any(fault.startswith(f"{second}:1:") for fault in faults)
    first.write_text(first_text)
    second.unlink()
    assert check_ledger(run, 2).faults == [f"{second} is missing"]


def test_a_ledger_of_an_earlier_version_has_no_checksums(tmp_path):
    run = RunDir(tmp_path)
    run.ledger.mkdir()
    run.ledger_of(0).write_text('{"kind":"ledger","step":1,"attempt":1,"samples":[1],"rows":[1],"num_tokens":7}\n')
    assert (check_ledger(run, 1).num_unhashed, check_ledger(run, 1).faults) == (1, [])

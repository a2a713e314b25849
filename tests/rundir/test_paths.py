"""Names in a run directory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import InputError
from tunesmith.rundir.paths import RunDir, require_possible, step_name, step_of


@given(st.integers(0, 10**12))
def test_steps_round_trip_through_their_names_and_sort_alike(step):
    from pathlib import Path

    assert step_of(Path("somewhere") / step_name(step)) == step
    assert step >= 10**8 - 1 or step_name(step) < step_name(step + 1)


@pytest.mark.parametrize("suffix", [".tmp.1", ".old.2", ".corrupt", ".corrupt-2", ".deleted", "x"])
def test_other_names_are_not_checkpoints(tmp_path, suffix):
    assert step_of(tmp_path / (step_name(100) + suffix)) is None
    assert step_of(tmp_path / "step-100") is None


def test_create_makes_every_folder_and_is_idempotent(tmp_path):
    run = RunDir(tmp_path / "runs" / "a")
    run.create()
    run.create()
    assert {p.name for p in run.root.iterdir()} == {"receipts", "ledger", "checkpoints", "evaluations", "logs"}
    assert not run.exists
    run.plan.write_text("{}")
    assert run.exists


def test_creating_a_run_on_a_file_raises_an_input_error(tmp_path):
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be created") as caught:
            RunDir(root).create()
        assert "--run-dir" in str(caught.value.remedy)


def test_every_path_is_inside_the_run_directory(tmp_path):
    run = RunDir(tmp_path)
    paths = [run.recipe, run.plan, run.receipts, run.rejects, run.events, run.status, run.lock, run.ledger_of(3)]
    paths += [run.checkpoint(5), run.evaluation(5), run.export, run.report, run.log(1, 2)]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path) for path in paths)
    assert run.log(1, 2).name == "attempt-001-rank-00002.log"
    assert run.evaluation(5).name == "step-00000005.jsonl"


@pytest.mark.parametrize("letter", ["a", "é", "語", "😀"])
def test_a_name_is_rejected_from_the_first_byte_that_the_file_system_does_not_allow(tmp_path, letter):
    size = len(letter.encode())
    fits = letter * (255 // size)
    require_possible(tmp_path / fits, "choose a shorter --run-dir")
    (tmp_path / fits).mkdir()
    for path in (tmp_path / (fits + letter), tmp_path / "new" / (fits + letter) / "below"):
        with pytest.raises(
            InputError, match=f"name is {len((fits + letter).encode())} bytes long.* allows 255"
        ) as caught:
            require_possible(path, "choose a shorter --run-dir")
        assert caught.value.remedy == "choose a shorter --run-dir"
        assert len(str(caught.value.where)) < 100
        with pytest.raises(OSError, match="too long"):
            path.mkdir(parents=True)


def test_a_path_is_rejected_that_leaves_no_room_for_the_files_of_a_run(tmp_path):
    path = tmp_path
    while len(str(path)) < 3800:
        path /= "d" * 100
    require_possible(path, "shorter")
    with pytest.raises(InputError, match=r"path is \d+ bytes long"):
        require_possible(path / ("e" * 200) / "f", "shorter")

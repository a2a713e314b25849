"""The commit protocol under kill -9, full disks and damage: a directory is complete or absent."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.waiting import LIMIT_S
from tunesmith.rundir import commit
from tunesmith.rundir.commit import MANIFEST, committed_directory, read_manifest, seal, verify

STAGES = ["commit.begin", "commit.files", "commit.manifest", "commit.rename", "commit.done"]
WRITER = """
import sys
from pathlib import Path
from tunesmith.rundir.commit import committed_directory
from tunesmith.rundir.faults import fault_point
final, word = Path(sys.argv[1]), sys.argv[2]
with committed_directory(final, int(sys.argv[3]), step=100) as directory:
    (directory / "model.bin").write_text(word * 1000)
    fault_point("middle")
    (directory / "sub").mkdir()
    (directory / "sub" / "state.json").write_text(word)
"""


def write_in_process(final: Path, word: str, attempt: int = 1, fault: str = "") -> subprocess.CompletedProcess:
    environment = {**os.environ, "TUNESMITH_FAULT": fault}
    arguments = [sys.executable, "-c", WRITER, str(final), word, str(attempt)]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=LIMIT_S)


def word_of(directory: Path) -> str:
    """Return the word that a valid directory was written with; both files must contain the same one."""
    assert verify(directory) is None
    word = (directory / "sub" / "state.json").read_text()
    assert (directory / "model.bin").read_text() == word * 1000
    return word


def write(final: Path, word: str = "new", attempt: int = 1) -> Path:
    with committed_directory(final, attempt, step=100, note="a fact") as directory:
        (directory / "model.bin").write_text(word * 1000)
        (directory / "sub").mkdir()
        (directory / "sub" / "state.json").write_text(word)
    return final


@pytest.mark.parametrize("stage", [*STAGES, "middle"])
def test_a_new_directory_is_absent_or_complete_after_a_kill_at_any_stage(tmp_path, stage):
    final = tmp_path / "step-00000100"
    assert write_in_process(final, "new", fault=f"{stage}=kill").returncode == -signal.SIGKILL
    assert final.exists() == (stage in ("commit.rename", "commit.done"))
    if final.exists():
        assert word_of(final) == "new"
    assert write_in_process(final, "later", attempt=2).returncode == 0, "the next attempt succeeds"
    assert word_of(final) == "later"


@pytest.mark.parametrize("stage", [*STAGES, "middle"])
def test_a_replaced_directory_is_the_old_or_the_new_one_after_a_kill_at_any_stage(tmp_path, stage):
    final = write(tmp_path / "export", "old")
    assert write_in_process(final, "new", attempt=2, fault=f"{stage}=kill").returncode == -signal.SIGKILL
    assert word_of(final) == ("new" if stage in ("commit.rename", "commit.done") else "old")


@pytest.mark.parametrize("stage", [*STAGES[:3], "middle"])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_full_disk_raises_and_leaves_nothing(tmp_path, stage, before):
    final = tmp_path / "step-00000100"
    if before:
        write(final, before)
    result = write_in_process(final, "new", fault=f"{stage}=raise")
    assert result.returncode == 1
    assert "No space left on device" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ([final.name] if before else [])
    if before:
        assert word_of(final) == before


def test_sigterm_ends_the_writer_and_keeps_the_target(tmp_path):
    final = write(tmp_path / "step-00000100", "old")
    assert write_in_process(final, "new", attempt=2, fault="middle=term").returncode == -signal.SIGTERM
    assert word_of(final) == "old"


def test_a_block_that_raises_keeps_the_target_and_leaves_no_temporary_directory(tmp_path):
    final = write(tmp_path / "export", "old")

    def interrupted():
        with committed_directory(final, 2) as directory:
            (directory / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    assert word_of(final) == "old"


def test_replacing_removes_the_files_of_the_old_directory(tmp_path):
    final = write(tmp_path / "export", "old")
    with committed_directory(final, 1) as directory:
        (directory / "only.txt").write_text("x")
    assert verify(final) is None
    assert sorted(p.name for p in final.iterdir()) == [MANIFEST, "only.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_a_file_and_an_empty_directory_of_the_same_name_are_replaced(tmp_path):
    (tmp_path / "a").write_text("a file")
    (tmp_path / "b").mkdir()
    assert word_of(write(tmp_path / "a")) == word_of(write(tmp_path / "b")) == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_two_concurrent_writers_of_one_name_both_succeed(tmp_path):
    final = tmp_path / "index"
    with committed_directory(final, 1) as first:
        (first / "x").write_text("first")
        with committed_directory(final, 2) as second:
            (second / "x").write_text("second")
        assert (final / "x").read_text() == "second"
    assert verify(final) is None
    assert (final / "x").read_text() == "first"


def test_without_an_atomic_swap_a_failed_replacement_restores_the_old_directory(tmp_path, monkeypatch):
    class NoSwap:  # macOS has no renameat2
        def __init__(self, *_args, **_kwargs):
            pass

    monkeypatch.setattr(commit.ctypes, "CDLL", NoSwap)
    final = write(tmp_path / "export", "old")
    assert word_of(write(final, "new", attempt=2)) == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    with pytest.raises(FileNotFoundError):
        commit._exchange(tmp_path / "missing", final, 3)
    assert word_of(final) == "new"


def test_every_flipped_bit_of_the_manifest_is_detected(tmp_path):
    final = tmp_path / "step"
    with committed_directory(final, 1, step=7) as directory:
        (directory / "a").touch()
    content = (final / MANIFEST).read_bytes()
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << (position % 8)
        (final / MANIFEST).write_bytes(damaged)
        assert verify(final), f"bit {position % 8} of byte {position // 8}: {bytes(damaged[position // 8 - 9 :][:20])}"
    (final / MANIFEST).write_bytes(content)
    assert verify(final) is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_flipped_bit_and_every_truncation_of_a_file_is_detected(tmp_path, data):
    final = write(tmp_path / "step")
    name = data.draw(st.sampled_from(["model.bin", "sub/state.json"]))
    content = (final / name).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), label="truncate"):
        (final / name).write_bytes(content[:place])
    else:
        flipped = bytes([content[place] ^ (1 << data.draw(st.integers(0, 7)))])
        (final / name).write_bytes(content[:place] + flipped + content[place + 1 :])
    assert name in (verify(final) or "")


def test_missing_extra_and_swapped_files_are_named(tmp_path):
    final = write(tmp_path / "step")
    (final / "extra.bin").write_text("x")
    assert verify(final) == "unexpected file extra.bin"
    (final / "extra.bin").unlink()
    (final / "sub" / MANIFEST).write_text("{}")
    assert verify(final) == "unexpected file sub/manifest.json"
    (final / "sub" / MANIFEST).unlink()
    (final / "sub" / "state.json").rename(tmp_path / "aside")
    assert verify(final) == "sub/state.json is missing"
    (tmp_path / "aside").rename(final / "sub" / "state.json")
    assert verify(final) is None
    other = write(tmp_path / "other", "two")
    (other / "model.bin").replace(final / "model.bin")
    assert verify(final) == "model.bin does not match its hash: it was modified"


def test_a_newer_schema_and_broken_manifests_are_distinguished(tmp_path):
    final = write(tmp_path / "step")
    manifest = read_manifest(final)
    (final / MANIFEST).write_text(json.dumps({**manifest, "schema": 2}))
    assert "newer version (schema 2" in str(verify(final))
    for broken in (
        "",
        "[]",
        "{",
        '{"schema": 1}',
        '{"schema": "1", "files": {}}',
        '{"schema": true, "files": {}}',
        "[" * 99999,
    ):
        (final / MANIFEST).write_text(broken)
        assert "manifest.json is missing or damaged" in str(verify(final)), broken
    assert "manifest.json is missing or damaged" in str(verify(tmp_path / "nowhere"))


def test_an_unreadable_file_is_reported_without_an_exception(tmp_path):
    final = tmp_path / "step"
    with committed_directory(final, 1) as directory:
        (directory / "empty.bin").touch()
    (final / "empty.bin").unlink()
    (final / "empty.bin").symlink_to("/proc/self/mem")  # its size is 0 and reading it fails
    assert verify(final) == "empty.bin cannot be read (Input/output error)"


def test_facts_of_every_json_type_are_stored_and_verified(tmp_path):
    facts = {
        "step": 100,
        "sizes": (1, 2),
        "by_number": {2: "b", 10: "a"},
        "note": "ü \udc80",
        "rate": 0.1,
        "none": None,
    }
    with committed_directory(tmp_path / "step", 1, **facts):
        pass
    assert verify(tmp_path / "step") is None
    manifest = read_manifest(tmp_path / "step")
    assert manifest["sizes"] == [1, 2]
    assert manifest["by_number"] == {"2": "b", "10": "a"}
    assert manifest["note"] == facts["note"]


def test_a_fact_with_a_reserved_name_is_rejected(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match="schema"):
        seal(tmp_path / "d", schema=7)

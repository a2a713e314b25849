"""The second home of checkpoints: whole or not there, retried, pruned, and taken up where the local disk is new."""

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.training.checkpoint.test_checkpoints import flip_bit, save
from tunesmith.errors import RunFault
from tunesmith.rundir import commit
from tunesmith.rundir.commit import verify
from tunesmith.rundir.fence import Superseded, begin_attempt
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint import mirror as mirrors
from tunesmith.training.checkpoint.checkpoints import CheckpointScan
from tunesmith.training.checkpoint.mirror import Mirror
from tunesmith.training.checkpoint.resume import fetch_newer


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDir:
    monkeypatch.setattr(mirrors, "WAIT_S", 0.0)
    monkeypatch.setattr(commit, "_fault_counts", {})
    run = RunDir(tmp_path / "here" / "run")
    run.create()
    for step in (10, 20, 30):
        save(run, step)
    return run


@pytest.fixture
def elsewhere(tmp_path) -> RunDir:
    """A machine whose disk is new: the same run, nothing in it."""
    run = RunDir(tmp_path / "there" / "run")
    run.create()
    return run


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_what_was_sent_comes_back_byte_for_byte(run, elsewhere, tmp_path, scheme):
    url = f"{scheme}://{tmp_path}/mirror"
    sent = Mirror(url, run, 1)
    for step in (10, 20):
        assert sent.send(run.checkpoint(step)).endswith(f"mirror/run/step-{step:08d}")
    received = Mirror(url, elsewhere, 1)
    assert received.steps() == [10, 20]
    found, source = fetch_newer(elsewhere, received, CheckpointScan(None, []))
    assert found.path == elsewhere.checkpoint(20)
    assert source is not None
    assert verify(elsewhere.checkpoint(20)) is None
    for file in run.checkpoint(20).iterdir():
        assert (elsewhere.checkpoint(20) / file.name).read_bytes() == file.read_bytes()
    assert fetch_newer(run, sent, CheckpointScan(run.checkpoint(30), [])) == (
        CheckpointScan(run.checkpoint(30), []),
        None,
    )


def test_a_damaged_one_is_passed_over_with_its_reason(run, elsewhere, tmp_path):
    sent = Mirror(f"file://{tmp_path}/mirror", run, 1)
    for step in (10, 20, 30):
        sent.send(run.checkpoint(step))
    place = tmp_path / "mirror" / "run"
    flip_bit(place / "step-00000020" / "model.safetensors")
    (place / "step-00000030" / "manifest.json").unlink()
    assert sent.steps() == [10, 20]
    found, _ = fetch_newer(elsewhere, Mirror(f"file://{tmp_path}/mirror", elsewhere, 1), CheckpointScan(None, []))
    assert found.path == elsewhere.checkpoint(10)
    (aside,) = found.set_aside
    assert "model.safetensors does not match its hash" in aside["why"]
    assert [path.name for path in elsewhere.checkpoints.iterdir()] == ["step-00000010"]


def test_a_connection_that_fails_is_tried_again_and_the_manifest_comes_last(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_FAULT", "mirror.files:1=raise")
    sent = Mirror(f"file://{tmp_path}/mirror", run, 1)
    sent.send(run.checkpoint(10))
    assert sent.steps() == [10]
    monkeypatch.setattr(mirrors, "TRIES", 1)
    monkeypatch.setattr(commit, "_fault_counts", {})
    with pytest.raises(RunFault, match="could not be sent to its mirror"):
        sent.send(run.checkpoint(20))
    assert sorted(path.name for path in (tmp_path / "mirror" / "run" / "step-00000020").iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert sent.steps() == [10]


def test_old_ones_go_and_newer_ones_than_ours_stay(run, tmp_path):
    sent = Mirror(f"file://{tmp_path}/mirror", run, 1)
    for step in (10, 20, 30):
        sent.send(run.checkpoint(step))
    sent.retain({20})
    assert sent.steps() == [20, 30]
    assert not (tmp_path / "mirror" / "run" / "step-00000010").exists()


def test_an_earlier_attempt_sends_no_manifest(run, tmp_path):
    sent = Mirror(f"file://{tmp_path}/mirror", run, 1)
    begin_attempt(run, 2)
    with pytest.raises(Superseded):
        sent.send(run.checkpoint(10))
    assert sent.steps() == []


@pytest.mark.parametrize("tries", [1, 3])
def test_what_cannot_be_fetched_is_no_damage_and_leaves_nothing(run, elsewhere, tmp_path, monkeypatch, tries):
    """Once: the next try fetches it. Where no try is left: a fault, not an older checkpoint."""
    url = f"file://{tmp_path}/mirror"
    sent = Mirror(url, run, 1)
    for step in (10, 20):
        sent.send(run.checkpoint(step))
    monkeypatch.setenv("TUNESMITH_FAULT", "mirror.fetched:1=raise")
    monkeypatch.setattr(mirrors, "TRIES", tries)
    if tries > 1:
        found, _ = fetch_newer(elsewhere, Mirror(url, elsewhere, 1), CheckpointScan(None, []))
        assert (found.path, found.set_aside) == (elsewhere.checkpoint(20), [])
        return
    with pytest.raises(RunFault, match=r"step 20 could not be fetched .*No space left") as raised:
        fetch_newer(elsewhere, Mirror(url, elsewhere, 1), CheckpointScan(None, []))
    assert "mirror/run/step-00000020" in str(raised.value)
    assert list(elsewhere.checkpoints.iterdir()) == []


def test_a_mirror_that_cannot_be_reached_is_not_an_empty_one(run, tmp_path):
    (tmp_path / "mirror").touch()  # no directory: whatever is asked below it fails
    with pytest.raises(RunFault, match="the mirror of the checkpoints cannot be reached"):
        Mirror(f"file://{tmp_path}/mirror", run, 1).steps()
    assert Mirror(f"file://{tmp_path}/nothing-sent-yet", run, 1).steps() == []


def test_user_and_password_are_not_told(run):
    assert Mirror("sftp://me:secret@host/disk/", run, 1).address == "sftp://host/disk/run"


class Deaf(LocalFileSystem):
    """A network that is down."""

    protocol = "deaf"

    def info(self, path, **kwargs):
        raise ConnectionError("nobody answers")

    def ls(self, path, detail=False, **kwargs):
        raise ConnectionError("nobody answers")


def test_a_network_that_is_down_is_no_empty_mirror_either(run, tmp_path):
    fsspec.register_implementation("deaf", Deaf, clobber=True)
    with pytest.raises(RunFault, match="cannot be reached: ConnectionError: nobody answers"):
        Mirror(f"deaf://{tmp_path}/mirror", run, 1).steps()

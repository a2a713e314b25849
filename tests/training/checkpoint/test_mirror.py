"""The checkpoint mirror: complete or absent, retried, pruned, and downloaded to a new local disk."""

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.training.checkpoint.test_checkpoints import flip_bit, save
from tunesmith.errors import RunFault
from tunesmith.rundir import faults
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
    monkeypatch.setattr(faults, "_fault_counts", {})
    run = RunDir(tmp_path / "here" / "run")
    run.create()
    for step in (10, 20, 30):
        save(run, step)
    return run


@pytest.fixture
def elsewhere(tmp_path) -> RunDir:
    """A machine with an empty disk: the same run without checkpoints."""
    run = RunDir(tmp_path / "there" / "run")
    run.create()
    return run


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_an_uploaded_checkpoint_downloads_byte_for_byte(run, elsewhere, tmp_path, scheme):
    url = f"{scheme}://{tmp_path}/mirror"
    sent = Mirror(url, run, 1)
    for step in (10, 20):
        assert sent.send(run.checkpoint(step)).endswith(f"mirror/run/step-{step:08d}")
    received = Mirror(url, elsewhere, 1)
    assert received.steps() == [10, 20]
    scan, source = fetch_newer(elsewhere, received, CheckpointScan(None, []))
    assert scan.path == elsewhere.checkpoint(20)
    assert source is not None
    assert verify(elsewhere.checkpoint(20)) is None
    for file in run.checkpoint(20).iterdir():
        assert (elsewhere.checkpoint(20) / file.name).read_bytes() == file.read_bytes()
    assert fetch_newer(run, sent, CheckpointScan(run.checkpoint(30), [])) == (
        CheckpointScan(run.checkpoint(30), []),
        None,
    )


def test_a_damaged_checkpoint_is_skipped_with_the_reason(run, elsewhere, tmp_path):
    sent = Mirror(f"file://{tmp_path}/mirror", run, 1)
    for step in (10, 20, 30):
        sent.send(run.checkpoint(step))
    mirrored = tmp_path / "mirror" / "run"
    flip_bit(mirrored / "step-00000020" / "model.safetensors")
    (mirrored / "step-00000030" / "manifest.json").unlink()
    assert sent.steps() == [10, 20]
    scan, _ = fetch_newer(elsewhere, Mirror(f"file://{tmp_path}/mirror", elsewhere, 1), CheckpointScan(None, []))
    assert scan.path == elsewhere.checkpoint(10)
    (aside,) = scan.set_aside
    assert "model.safetensors does not match its hash" in aside["why"]
    assert [path.name for path in elsewhere.checkpoints.iterdir()] == ["step-00000010"]


def test_a_failed_upload_is_retried_and_the_manifest_is_uploaded_last(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_FAULT", "mirror.files:1=raise")
    sent = Mirror(f"file://{tmp_path}/mirror", run, 1)
    sent.send(run.checkpoint(10))
    assert sent.steps() == [10]
    monkeypatch.setattr(mirrors, "TRIES", 1)
    monkeypatch.setattr(faults, "_fault_counts", {})
    with pytest.raises(RunFault, match="could not be uploaded to its mirror"):
        sent.send(run.checkpoint(20))
    assert sorted(path.name for path in (tmp_path / "mirror" / "run" / "step-00000020").iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert sent.steps() == [10]


def test_retention_deletes_old_checkpoints_and_keeps_newer_ones(run, tmp_path):
    sent = Mirror(f"file://{tmp_path}/mirror", run, 1)
    for step in (10, 20, 30):
        sent.send(run.checkpoint(step))
    sent.retain({20})
    assert sent.steps() == [20, 30]
    assert not (tmp_path / "mirror" / "run" / "step-00000010").exists()


def test_a_superseded_attempt_uploads_no_manifest(run, tmp_path):
    sent = Mirror(f"file://{tmp_path}/mirror", run, 1)
    begin_attempt(run, 2)
    with pytest.raises(Superseded):
        sent.send(run.checkpoint(10))
    assert sent.steps() == []


@pytest.mark.parametrize("tries", [1, 3])
def test_a_failed_download_is_retried_and_leaves_nothing(run, elsewhere, tmp_path, monkeypatch, tries):
    """The next try downloads it. Without another try: a fault, not an older checkpoint."""
    url = f"file://{tmp_path}/mirror"
    sent = Mirror(url, run, 1)
    for step in (10, 20):
        sent.send(run.checkpoint(step))
    monkeypatch.setenv("TUNESMITH_FAULT", "mirror.fetched:1=raise")
    monkeypatch.setattr(mirrors, "TRIES", tries)
    if tries > 1:
        scan, _ = fetch_newer(elsewhere, Mirror(url, elsewhere, 1), CheckpointScan(None, []))
        assert (scan.path, scan.set_aside) == (elsewhere.checkpoint(20), [])
        return
    with pytest.raises(RunFault, match=r"step 20 could not be downloaded .*No space left") as raised:
        fetch_newer(elsewhere, Mirror(url, elsewhere, 1), CheckpointScan(None, []))
    assert "mirror/run/step-00000020" in str(raised.value)
    assert list(elsewhere.checkpoints.iterdir()) == []


def test_an_unreachable_mirror_does_not_count_as_empty(run, tmp_path):
    (tmp_path / "mirror").touch()  # a file: every operation below it fails
    with pytest.raises(RunFault, match="the checkpoint mirror cannot be reached"):
        Mirror(f"file://{tmp_path}/mirror", run, 1).steps()
    assert Mirror(f"file://{tmp_path}/nothing-sent-yet", run, 1).steps() == []


def test_the_address_hides_user_and_password(run):
    assert Mirror("sftp://me:secret@host/disk/", run, 1).address == "sftp://host/disk/run"


class Unreachable(LocalFileSystem):
    """A file system whose network is down."""

    protocol = "unreachable"

    def info(self, path, **kwargs):
        raise ConnectionError("no route to host")

    def ls(self, path, detail=False, **kwargs):
        raise ConnectionError("no route to host")


def test_a_network_failure_does_not_count_as_an_empty_mirror(run, tmp_path):
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    with pytest.raises(RunFault, match="cannot be reached: ConnectionError: no route to host"):
        Mirror(f"unreachable://{tmp_path}/mirror", run, 1).steps()

"""The fence: only the newest attempt writes, and only into the directory of its run."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tunesmith.errors import RunFault
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.fence import (
    RunLost,
    Superseded,
    begin_attempt,
    claim,
    loss_of,
    may_write,
    newest_attempt,
    require_newest,
)
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, read_status


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A run whose first attempt has started."""
    run = RunDir(tmp_path / "run")
    run.create()
    return begin_attempt(run, 1)


def test_the_id_of_a_run_is_random_and_kept_by_later_attempts(run, tmp_path):
    assert len(run.run_id) == 16
    assert run.fence.read_text() == f"1 {run.run_id}\n"
    assert begin_attempt(RunDir(run.root), 2).run_id == claim(RunDir(run.root)).run_id == run.run_id
    assert newest_attempt(run) == 2
    with pytest.raises(Superseded, match="attempt 2 of this run has started"):
        require_newest(run, 1)
    other = RunDir(tmp_path / "other")
    other.create()
    assert claim(other).run_id != run.run_id


def test_a_fence_of_an_earlier_version_is_read_and_gets_an_id(run):
    run.fence.write_text("3\n")
    assert newest_attempt(run) == 3
    assert loss_of(run) is None  # an earlier version that resumed the run wrote no ID
    begun = begin_attempt(RunDir(run.root), 4)
    assert run.fence.read_text() == f"4 {begun.run_id}\n"
    run.fence.write_text("what?")
    assert newest_attempt(run) == 0
    assert may_write(run, 1)


@pytest.mark.parametrize("failures", [1, 100])
def test_a_fence_that_cannot_be_read_for_a_moment_is_not_replaced(run, monkeypatch, failures):
    left, read_bytes, content = [failures], Path.read_bytes, run.fence.read_text()

    def read(path: Path) -> bytes:
        if path == run.fence and left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "stale file handle", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    if failures == 1:
        assert claim(RunDir(run.root)).run_id == run.run_id
    else:
        with pytest.raises(OSError, match="stale"):
            claim(RunDir(run.root))
    assert run.fence.read_text() == content


def delete(run: RunDir) -> None:
    shutil.rmtree(run.root)


def rename(run: RunDir) -> None:
    run.root.rename(run.root.with_name("renamed"))


def replace_by_a_file(run: RunDir) -> None:
    shutil.rmtree(run.root)
    run.root.write_text("")


def replace_by_an_empty_directory(run: RunDir) -> None:
    shutil.rmtree(run.root)
    run.root.mkdir()


def replace_by_another_run(run: RunDir) -> None:
    """As a second run at the same path does after a deletion: it has attempt 1 as well."""
    shutil.rmtree(run.root)
    other = RunDir(run.root)
    other.create()
    begin_attempt(other, 1)
    Status("training", attempt=1).write(other.status)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (delete, "was deleted or renamed"),
        (rename, "was deleted or renamed"),
        (replace_by_a_file, "was deleted or renamed"),
        (replace_by_an_empty_directory, "attempt is missing"),
        (replace_by_another_run, "was replaced by that of another run"),
    ],
)
def test_a_run_whose_directory_is_lost_writes_nothing(run, action, expected):
    action(run)
    before = contents(run.root.parent)
    with pytest.raises(RunLost, match=expected) as caught:
        require_newest(run, 1)
    assert caught.value.where == str(run.root)
    assert caught.value.remedy
    assert not may_write(run, 1)
    record_end(run, 1, RunFault("failed"))
    assert contents(run.root.parent) == before
    assert not list(event_lines(run.events))
    status = read_status(run.status)
    assert status is None or status.phase == "training"


def contents(directory: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))}


def test_a_directory_that_becomes_read_only_is_named():
    """In a process without root's permission to write anywhere."""
    directory = Path(tempfile.mkdtemp())
    try:
        run = RunDir(directory / "run")
        run.create()
        run = begin_attempt(run, 1)
        directory.chmod(0o755)
        run.root.chmod(0o555)
        if (pid := os.fork()) == 0:
            if os.getuid() == 0:
                os.setuid(65534)
            error = loss_of(run)
            os._exit(0 if error is not None and "can no longer be written" in error.what else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        run.root.chmod(0o755)
        assert loss_of(run) is None
    finally:
        shutil.rmtree(directory)


def test_directories_of_a_deleted_run_are_not_created_again(run):
    """Writers create at most the directory of their file."""
    from tunesmith.rundir.atomic import write_text
    from tunesmith.rundir.commit import committed_directory
    from tunesmith.rundir.ledger import Ledger

    shutil.rmtree(run.root)
    with pytest.raises(FileNotFoundError):
        write_text(run.evaluation(3), "x")
    with pytest.raises(FileNotFoundError):
        Ledger(run, 0, 1)
    with pytest.raises(FileNotFoundError), committed_directory(run.checkpoint(3), 1):
        pass
    assert not run.root.exists()


def test_programs_of_a_run_create_no_parents_of_directories():
    """Only what starts a run creates its directory, and only `tunesmith export` the place of its target."""
    root = Path(__file__).resolve().parents[2]
    files = [path for package in ("rundir", "training") for path in (root / package).rglob("*.py")]
    creators = {str(path.relative_to(root)) for path in files if "parents=True" in path.read_text(encoding="utf-8")}
    exports = {"training/export/export.py", "training/export/gguf/export.py"}
    assert creators == {"rundir/lock.py", "rundir/paths.py", *exports}

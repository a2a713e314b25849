"""Fencing: only the newest attempt of a run may write, and only into the directory of that run.

A worker that was cut off (network partition, suspended host) may continue long after another attempt took over the run,
and the run directory may be deleted, renamed or replaced while it trains. A small file holds the number of the newest
attempt and the random ID of the run; it is read before every write of events, status, checkpoints or the export. No
lock is needed: an attempt raises the fence before it deletes the partial files of earlier attempts and scans for
checkpoints, so a rename by an earlier attempt fails because its source no longer exists. Earlier versions wrote only
the number.
"""

import os
import secrets
import time
from dataclasses import dataclass, replace

from tunesmith.errors import RunFault
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.paths import RunDir

_TRIES = 3
_WAIT_S = 0.1
"""Before the directory counts as lost: a network file system may show a replaced file late."""


class Superseded(RunFault):
    """A newer attempt of the run has started: the older one no longer writes and ends."""


class RunLost(RunFault):
    """The directory at the path of the run is no longer that of the run, or cannot be written. The run ends and writes
    nothing, not even this error."""


@dataclass(frozen=True)
class _Fence:
    """attempt: 0 if unknown. run_id: empty if unknown (a file of an earlier version, or damaged)."""

    attempt: int = 0
    run_id: str = ""


def claim(run: RunDir) -> RunDir:
    """Return the run with its ID, which the first process that works on it creates. Only for the holder of the run."""
    fence = _read_or_raise(run) or _Fence()
    if not fence.run_id:
        fence = replace(fence, run_id=secrets.token_hex(8))
        _write(run, fence)
    return replace(run, run_id=fence.run_id)


def begin_attempt(run: RunDir, attempt: int) -> RunDir:
    """Raise the fence: earlier attempts can no longer write. Return the run with its ID. Raises Superseded if a later
    attempt has started."""
    require_newest(run, attempt)
    run = claim(run)
    if newest_attempt(run) < attempt:
        _write(run, _Fence(attempt, run.run_id))
    return run


def newest_attempt(run: RunDir) -> int:
    """Number of the newest attempt that has started; 0 before the first, or if the file is damaged."""
    return (_read(run) or _Fence()).attempt


def require_newest(run: RunDir, attempt: int) -> None:
    """Raise Superseded if a later attempt has started, RunLost if the directory is no longer that of the run."""
    require_present(run)
    if (newest := newest_attempt(run)) > attempt:
        raise Superseded(
            f"attempt {newest} of this run has started: attempt {attempt} no longer writes",
            where=str(run.root),
            remedy="nothing: the newer attempt continues the run",
        )


def may_write(run: RunDir, attempt: int) -> bool:
    """Whether `require_newest` would not raise."""
    return loss_of(run) is None and newest_attempt(run) <= attempt


def require_present(run: RunDir) -> None:
    """Raise RunLost if the directory is no longer that of the run, or cannot be written."""
    if (error := loss_of(run)) is not None:
        raise error


def loss_of(run: RunDir) -> RunLost | None:
    """Return why the directory is no longer that of the run; None if it is, or if the ID of the run is not known."""
    for _ in range(_TRIES - 1):
        if _loss_of(run) is None:
            return None
        time.sleep(_WAIT_S)
    return _loss_of(run)


def _loss_of(run: RunDir) -> RunLost | None:
    if not run.run_id:
        return None
    fence = _read(run)
    if fence is None and not run.root.is_dir():
        what = "the run directory was deleted or renamed while the run was in progress"
        remedy = "if it was renamed, `tunesmith resume` with its new path continues the run; otherwise start it again"
    elif fence is None:
        what = f"the run directory was replaced while the run was in progress: {run.fence.name} is missing"
        remedy = "nothing was written to the new directory; start the run again with another --run-dir"
    elif fence.run_id not in ("", run.run_id):
        what = "the run directory was replaced by that of another run while the run was in progress"
        remedy = "nothing was written to the directory of the other run; start this run again with another --run-dir"
    elif not os.access(run.root, os.W_OK | os.X_OK, effective_ids=True):
        what = "the run directory can no longer be written: it became read-only while the run was in progress"
        remedy = f"make it writable, then continue from the newest checkpoint: tunesmith resume {run.root}"
    else:
        return None
    return RunLost(what, where=str(run.root), remedy=remedy)


def _read(run: RunDir) -> _Fence | None:
    """None if the file does not exist; unknown values if it cannot be read now."""
    try:
        return _stored(run)
    except OSError:
        return _Fence()


def _read_or_raise(run: RunDir) -> _Fence | None:
    """Like `_read`, but an existing file that cannot be read must not be replaced: raises OSError after some tries."""
    for _ in range(_TRIES - 1):
        try:
            return _stored(run)
        except OSError:
            time.sleep(_WAIT_S)
    return _stored(run)


def _stored(run: RunDir) -> _Fence | None:
    """None if the file does not exist; unknown values if it is damaged. Raises OSError."""
    try:
        attempt, _, run_id = run.fence.read_bytes().strip().partition(b" ")
        return _Fence(int(attempt), run_id.decode("ascii"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return _Fence()


def _write(run: RunDir, fence: _Fence) -> None:
    write_text(run.fence, f"{fence.attempt} {fence.run_id}\n")

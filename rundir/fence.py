"""Fencing: only the newest attempt of a run may write.

A worker that was cut off (network partition, suspended host) may continue long after another attempt took over the run.
A small file holds the number of the newest attempt; it is read before every write of events, status, checkpoints or the
export. No lock is needed: an attempt raises the fence before it deletes the partial files of earlier attempts and scans
for checkpoints, so a rename by an earlier attempt fails because its source no longer exists.
"""

from tunesmith.errors import RunFault
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.paths import RunDir


class Superseded(RunFault):
    """A newer attempt of the run has started: the older one no longer writes and ends."""


def begin_attempt(run: RunDir, attempt: int) -> None:
    """Raise the fence: earlier attempts can no longer write. Raises Superseded if a later attempt has started."""
    require_newest(run, attempt)
    if newest_attempt(run) < attempt:
        write_text(run.fence, f"{attempt}\n")


def newest_attempt(run: RunDir) -> int:
    """Number of the newest attempt that has started; 0 before the first, or if the file is damaged."""
    try:
        return int(run.fence.read_bytes())
    except (OSError, ValueError):
        return 0


def require_newest(run: RunDir, attempt: int) -> None:
    """Raise Superseded if a later attempt has started."""
    if (newest := newest_attempt(run)) > attempt:
        raise Superseded(
            f"attempt {newest} of this run has started: attempt {attempt} no longer writes",
            where=str(run.root),
            remedy="nothing: the newer attempt resumes from the newest checkpoint",
        )

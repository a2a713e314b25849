"""Which attempt of a run may write: the newest that has begun, and no other.

A worker that was cut off (a partition, a stopped host) may go on long after another attempt took the run over. The
number of the newest attempt stands in a small file; whoever writes events, status, a checkpoint or the export reads it
first. No lock is needed: an attempt raises the fence before it sweeps away what earlier ones left half-written and
scans for checkpoints, so that an earlier one's rename finds nothing to rename.
"""

from tunesmith.errors import RunFault
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.paths import RunDir


class Superseded(RunFault):
    """A newer attempt of the run has begun: the older one writes nothing any more and ends."""


def begin_attempt(run: RunDir, attempt: int) -> None:
    """Raise the fence: from now on earlier attempts write nothing. Raises Superseded where a later one has begun."""
    require_newest(run, attempt)
    if newest_attempt(run) < attempt:
        write_text(run.fence, f"{attempt}\n")


def newest_attempt(run: RunDir) -> int:
    """The number of the newest attempt that has begun; 0 before the first, and where the file is damaged."""
    try:
        return int(run.fence.read_bytes())
    except (OSError, ValueError):
        return 0


def require_newest(run: RunDir, attempt: int) -> None:
    """Raises Superseded where a later attempt has begun."""
    if (newest := newest_attempt(run)) > attempt:
        raise Superseded(
            f"attempt {newest} of this run has begun: attempt {attempt} writes nothing any more",
            where=str(run.root),
            remedy="nothing: the newer attempt goes on from the newest checkpoint",
        )

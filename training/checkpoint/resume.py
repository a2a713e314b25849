"""Resuming a run: the newest checkpoint that verifies, on this disk or in the mirror."""

from functools import partial
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.errors import RunFault
from tunesmith.rundir.events import ResumeEvent
from tunesmith.rundir.paths import RunDir, step_of
from tunesmith.training.checkpoint.checkpoints import (
    CheckpointScan,
    load_optimizer,
    load_state,
    load_trained_parameters,
    newest_valid,
    require_same,
    sweep,
)
from tunesmith.training.checkpoint.fingerprints import fingerprints_of
from tunesmith.training.checkpoint.mirror import Mirror
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.journal import Journal
from tunesmith.training.rank_context import RankContext


def resume(context: RankContext, mirror: Mirror | None = None) -> tuple[RunState, Path | None]:
    """Set the engine to the newest checkpoint that verifies, here or in the mirror; state and path (None: fresh).

    mirror: on the first rank, where the recipe has one.
    """
    find = partial(find_checkpoint, context.run, context.plan, context.journal, mirror)
    state, path = context.ranks.from_first(find, long_running=True)
    if path is None:
        return state, None
    optimizer = load_optimizer(path) if state.num_updates else None
    try:
        context.engine.load(load_trained_parameters(path), optimizer, state.num_updates)
    except KeyError as error:
        raise RunFault(
            f"the checkpoint lacks the parameter {error}",
            where=str(path),
            remedy="it was written with another method or model: start a new run with another --run-dir",
        ) from error
    return state, path


def find_checkpoint(
    run: RunDir, plan: Plan, journal: Journal, mirror: Mirror | None = None
) -> tuple[RunState, Path | None]:
    """What the run is resumed from, once leftovers are swept away and damaged checkpoints set aside; on rank 0.

    Raises RunFault where it belongs to another run, or the mirror is needed and cannot be reached.
    """
    sweep(run)
    found = newest_valid(run)
    source = None
    if mirror is not None:
        found, source = take_from_mirror(run, plan, mirror, found, journal)
    if found.path is not None or found.set_aside:
        why = (
            "the newest checkpoint whose every byte verifies" + (f", fetched from {source}" if source else "")
            if found.path
            else "no checkpoint verifies: from the start"
        )
        step = step_of(found.path) if found.path else 0
        journal.write(ResumeEvent(step=step, path=str(found.path), why=why, set_aside=found.set_aside))
    if found.path is None:
        return RunState(), None
    state, fingerprints = load_state(found.path)
    require_same(fingerprints, fingerprints_of(plan), found.path)
    return state, found.path


def take_from_mirror(
    run: RunDir, plan: Plan, mirror: Mirror, found: CheckpointScan, journal: Journal
) -> tuple[CheckpointScan, str | None]:
    """What the mirror holds and this disk lacks: a newer checkpoint, and the best one where it is to be exported.

    Where there is a whole checkpoint here, a mirror that cannot be reached is a warning; otherwise RunFault.
    """
    whole = found.path is not None
    source = None
    try:
        found, source = fetch_newer(run, mirror, found)
        if found.path is not None and plan.recipe.evaluation.early_stopping:
            fetch_best(run, mirror, found.path, journal)
    except RunFault as error:
        if not whole:
            raise
        journal.warning(f"going on without the mirror: {error}", code="mirror_failed")
    return found, source


def fetch_best(run: RunDir, mirror: Mirror, path: Path, journal: Journal) -> None:
    """The checkpoint of the lowest validation loss so far, where `path` tells of one that is not here."""
    best = load_state(path)[0].best_step
    if not best or run.checkpoint(best).is_dir():
        return
    fault = mirror.fetch(best) if best in mirror.steps() else "it is not there"
    if fault is not None:
        journal.warning(
            f"the checkpoint of the lowest validation loss so far, step {best}, cannot be had from {mirror.address}: "
            f"{fault}",
            code="mirror_failed",
        )


def fetch_newer(run: RunDir, mirror: Mirror, found: CheckpointScan) -> tuple[CheckpointScan, str | None]:
    """The newest whole checkpoint of the mirror where it is newer than what was found here; and where it came from."""
    here = step_of(found.path) if found.path else None
    set_aside = list(found.set_aside)
    for step in reversed(mirror.steps()):
        if here is not None and step <= here:
            break
        if (fault := mirror.fetch(step)) is None:
            return CheckpointScan(run.checkpoint(step), set_aside), mirror.address
        set_aside.append({"path": f"{mirror.address}/{run.checkpoint(step).name}", "why": fault})
    return CheckpointScan(found.path, set_aside), None

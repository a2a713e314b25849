"""Resuming a run from the newest valid checkpoint, local or in the mirror."""

from functools import partial
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.data.index.integrity import record_faults, require_intact
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
    """Load the newest valid checkpoint, local or in the mirror. Returns state and path (None: a new run).

    mirror: on the first rank, if the recipe has one.
    """
    find = partial(find_checkpoint, context.run, context.plan, context.journal, mirror)
    state, path = context.ranks.from_first(find)
    if path is None:
        return state, None
    optimizer = load_optimizer(path) if state.num_updates else None
    try:
        context.engine.load(load_trained_parameters(path), optimizer, state.num_updates)
    except KeyError as error:
        raise RunFault(
            f"the checkpoint has no parameter {error}",
            where=str(path),
            remedy="it was written with another method or model: start a new run with another --run-dir",
        ) from error
    return state, path


def find_checkpoint(
    run: RunDir, plan: Plan, journal: Journal, mirror: Mirror | None = None
) -> tuple[RunState, Path | None]:
    """Remove leftovers, set damaged checkpoints aside and return the checkpoint to resume from; on rank 0.

    Raises RunFault if the checkpoint belongs to another run, if the prepared data was damaged, or if the mirror is
    needed and cannot be reached.
    """
    sweep(run)
    scan = newest_valid(run)
    source = None
    if mirror is not None:
        scan, source = take_from_mirror(run, plan, mirror, scan, journal)
    if scan.path is not None or scan.set_aside:
        why = (
            "the newest valid checkpoint" + (f", downloaded from {source}" if source else "")
            if scan.path
            else "no valid checkpoint: training from the start"
        )
        step = step_of(scan.path) if scan.path else 0
        journal.write(ResumeEvent(step=step, path=str(scan.path), why=why, set_aside=scan.set_aside))
    if scan.path is None:
        return RunState(), None
    state, fingerprints = load_state(scan.path)
    require_same(fingerprints, fingerprints_of(plan), scan.path)
    require_intact(plan)
    journal.warn_of_damage(record_faults(run, plan))
    return state, scan.path


def take_from_mirror(
    run: RunDir, plan: Plan, mirror: Mirror, scan: CheckpointScan, journal: Journal
) -> tuple[CheckpointScan, str | None]:
    """Download checkpoints that the local disk lacks: a newer one, and with early stopping the best one.

    An unreachable mirror is a warning if there is a valid local checkpoint, otherwise a RunFault.
    """
    is_local = scan.path is not None
    source = None
    try:
        scan, source = fetch_newer(run, mirror, scan)
        if scan.path is not None and plan.recipe.evaluation.early_stopping:
            fetch_best(run, mirror, scan.path, journal)
    except RunFault as error:
        if not is_local:
            raise
        journal.warning(f"continuing without the mirror: {error}", code="mirror_failed")
    return scan, source


def fetch_best(run: RunDir, mirror: Mirror, path: Path, journal: Journal) -> None:
    """Download the checkpoint of the lowest validation loss so far, if the state in `path` names one that is not local.

    A failure is a warning.
    """
    best = load_state(path)[0].best_step
    if not best or run.checkpoint(best).is_dir():
        return
    fault = mirror.fetch(best) if best in mirror.steps() else "it is missing"
    if fault is not None:
        journal.warning(
            f"the checkpoint of the lowest validation loss so far, step {best}, cannot be downloaded from "
            f"{mirror.address}: {fault}",
            code="mirror_failed",
        )


def fetch_newer(run: RunDir, mirror: Mirror, scan: CheckpointScan) -> tuple[CheckpointScan, str | None]:
    """Download the newest valid checkpoint of the mirror if it is newer than the local one. Returns the scan, and the
    mirror's address if a checkpoint was downloaded."""
    local_step = step_of(scan.path) if scan.path else None
    set_aside = list(scan.set_aside)
    for step in reversed(mirror.steps()):
        if local_step is not None and step <= local_step:
            break
        if (fault := mirror.fetch(step)) is None:
            return CheckpointScan(run.checkpoint(step), set_aside), mirror.address
        set_aside.append({"path": f"{mirror.address}/{run.checkpoint(step).name}", "why": fault})
    return CheckpointScan(scan.path, set_aside), None

"""The life of a run on one rank: load, resume, evaluate, train, evaluate, export. Order of text is order of time."""

import math
from collections.abc import Sequence
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.data.index.loader import Loader
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import RunFault
from tunesmith.kernels.parity import Parity
from tunesmith.rundir.ledger import Ledger
from tunesmith.rundir.paths import RunDir, step_of
from tunesmith.training.checkpoint.checkpoints import (
    Found,
    load_optimizer,
    load_state,
    load_trained_parameters,
    newest_valid,
    require_same,
    sweep,
)
from tunesmith.training.checkpoint.mirror import Mirror
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.interruption import Interruption
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.distributed.watchdog import Watchdog
from tunesmith.training.engine.build import build_engine
from tunesmith.training.engine.protocol import Engine
from tunesmith.training.journal import Journal
from tunesmith.training.loop import Outcome, Run, train
from tunesmith.training.milestones import Milestones, fingerprints_of
from tunesmith.training.reference import reference_of
from tunesmith.training.samples import loader_of


def live(run: RunDir, plan: Plan, ranks: Ranks, journal: Journal, interruption: Interruption, attempt: int) -> Outcome:
    """Everything that one rank does. Raises InputError or RunFault with what to do; anything else is a bug."""
    watchdog = Watchdog(run, ranks, attempt, plan.recipe.hang_timeout_s)
    watchdog.start()
    journal.phase("loading")
    template = Path(plan.model.chat_template) if plan.model.chat_template else None
    tokenizer = Tokenizer.load(Path(plan.model.directory), template)
    engine = build_engine(plan, ranks)
    tell_kernels(engine.loss_module.compared, journal)
    reference = reference_of(run, plan, engine, ranks, journal)

    url = plan.recipe.checkpoint.mirror
    mirror = Mirror(url, run, attempt) if url and ranks.is_first else None
    state, resumed_from = resume(run, plan, engine, journal, ranks, mirror)
    journal.status.step = state.step
    journal.event(
        "start",
        attempt=attempt,
        step=state.step,
        world_size=ranks.world_size,
        pid=journal.status.pid,
        host=journal.status.host,
        resumed_from=str(resumed_from) if resumed_from else None,
    )

    index = TokenIndex.open(Path(plan.data.train.index))
    loader = loader_of(plan, index, ranks, reference.get("train"))
    _require_steps(loader, plan)
    ledger = Ledger(run, ranks.rank, attempt)
    milestones = Milestones(
        run, plan, engine, state, tokenizer, ranks, journal, ledger, attempt, reference, interruption, mirror
    )

    milestones.before()
    journal.phase("training")
    outcome = train(Run(plan, engine, loader, state, ranks, ledger, journal, milestones, interruption, watchdog))
    if outcome != "preempted":
        milestones.after()
    engine.close()
    ledger.close()
    watchdog.close()
    return outcome


def tell_kernels(compared: Sequence[Parity], journal: Journal) -> None:
    """How each kernel fared against plain torch; a warning for each that is switched off."""
    items = [
        {
            "operation": parity.operation,
            "implementation": parity.implementation,
            "difference": parity.difference if math.isfinite(parity.difference) else None,
            "tolerance": parity.tolerance,
            "holds": parity.holds,
        }
        for parity in compared
    ]
    journal.event("kernels", items=items)
    for parity in compared:
        if not parity.holds:
            why = parity.fault or f"differs by {parity.difference:.1e}, {parity.tolerance:.0e} is allowed"
            journal.warning(
                f"the kernel for {parity.operation} ({parity.implementation}) is switched off, plain torch takes its "
                f"place: {why}",
                code="kernel_off",
            )


def resume(
    run: RunDir, plan: Plan, engine: Engine, journal: Journal, ranks: Ranks, mirror: Mirror | None = None
) -> tuple[RunState, Path | None]:
    """Set the engine to the newest checkpoint that verifies, here or in the mirror; state and path (None: fresh)."""
    state, path = ranks.from_first(lambda: find_checkpoint(run, plan, journal, mirror), patient=True)
    if path is None:
        return state, None
    optimizer = load_optimizer(path) if state.num_updates else None
    try:
        engine.load(load_trained_parameters(path), optimizer, state.num_updates)
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
        journal.event("resume", step=step, path=str(found.path), why=why, set_aside=found.set_aside)
    if found.path is None:
        return RunState(), None
    state, fingerprints = load_state(found.path)
    require_same(fingerprints, fingerprints_of(plan), found.path)
    return state, found.path


def take_from_mirror(
    run: RunDir, plan: Plan, mirror: Mirror, found: Found, journal: Journal
) -> tuple[Found, str | None]:
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


def fetch_newer(run: RunDir, mirror: Mirror, found: Found) -> tuple[Found, str | None]:
    """The newest whole checkpoint of the mirror where it is newer than what was found here; and where it came from."""
    here = step_of(found.path) if found.path else None
    set_aside = list(found.set_aside)
    for step in reversed(mirror.steps()):
        if here is not None and step <= here:
            break
        if (fault := mirror.fetch(step)) is None:
            return Found(run.checkpoint(step), set_aside), mirror.address
        set_aside.append({"path": f"{mirror.address}/{run.checkpoint(step).name}", "why": fault})
    return Found(found.path, set_aside), None


def _require_steps(loader: Loader, plan: Plan) -> None:
    if loader.total_steps != plan.batch.total_steps:
        raise RunFault(
            f"the prepared data gives {loader.total_steps} steps, the plan says {plan.batch.total_steps}",
            where=plan.data.train.index,
            remedy="prepare again: start the run anew with another --run-dir",
        )

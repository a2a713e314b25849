"""One rank from plan to export, in chronological order: load, resume, evaluate, train, evaluate, export."""

import math
from collections.abc import Sequence
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.data.index.loader import Loader
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.planned import planned_tokenizer
from tunesmith.errors import RunFault
from tunesmith.inference.model_cache import generate_as_proved
from tunesmith.kernels.parity import Parity
from tunesmith.rundir.events import KernelsEvent, StartEvent
from tunesmith.rundir.ledger import Ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.training import kernel_fallback
from tunesmith.training.checkpoint.mirror import Mirror
from tunesmith.training.checkpoint.resume import resume
from tunesmith.training.distributed.interruption import Interruption
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.distributed.stages import Stage
from tunesmith.training.distributed.watchdog import Watchdog
from tunesmith.training.engine.build import build_engine
from tunesmith.training.evaluation import Evaluation
from tunesmith.training.finishing import finish
from tunesmith.training.journal import Journal
from tunesmith.training.loop import Outcome, Training, train
from tunesmith.training.model_check import check_model
from tunesmith.training.rank_context import RankContext
from tunesmith.training.reference import reference_log_probabilities
from tunesmith.training.samples import loader_of
from tunesmith.training.saving import Saving


def run_rank(
    run: RunDir,
    plan: Plan,
    ranks: Ranks,
    journal: Journal,
    interruption: Interruption,
    watchdog: Watchdog,
    attempt: int,
) -> Outcome:
    """Run one rank to its outcome. Raises InputError or RunFault with a remedy; any other exception is a bug."""
    journal.phase("loading")
    with watchdog.stage(Stage.LOADING, 0):
        tokenizer = planned_tokenizer(plan)
        engine = build_engine(plan, ranks)
        record_kernels(engine.loss_module.compared, journal)
        check_model(engine.loss_module, plan, ranks, journal)
        generate_as_proved(engine.loss_module.model, plan.model.proof)
    context = RankContext(run, plan, attempt, ranks, journal, engine, tokenizer, watchdog)
    with watchdog.stage(Stage.REFERENCE, 0):
        reference = reference_log_probabilities(context)

    url = plan.recipe.checkpoint.mirror
    mirror = Mirror(url, run, attempt) if url and ranks.is_first else None
    with watchdog.stage(Stage.RESUME, 0):
        state, resumed_from = resume(context, mirror)
        kernel_fallback.restore(state)
        if engine.loss_scale is not None:
            engine.loss_scale.restore(state)
    journal.status.step = state.step
    journal.write(
        StartEvent(
            attempt=attempt,
            step=state.step,
            world_size=ranks.world_size,
            pid=journal.status.pid,
            host=journal.status.host,
            resumed_from=str(resumed_from) if resumed_from else None,
        )
    )

    index = TokenIndex.open(Path(plan.data.train.index))
    loader = loader_of(plan, index, ranks, reference.get("train"))
    _require_steps(loader, plan)
    ledger = Ledger(run, ranks.rank, attempt)
    evaluation = Evaluation(context, state, reference)
    saving = Saving(context, state, ledger, interruption, mirror)

    evaluation.before()
    journal.phase("training")
    with watchdog.stage(Stage.TRAINING, state.step):
        outcome = train(Training(context, state, loader, ledger, evaluation, saving, interruption))
    with watchdog.stage(Stage.FINISH, state.step):
        saving.close()
        if outcome != "preempted":
            finish(context, state, evaluation)
        engine.close()
        ledger.close()
    return outcome


def record_kernels(compared: Sequence[Parity], journal: Journal) -> None:
    """Write the parity of each kernel with its reference to the journal, and a warning for each disabled kernel."""
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
    journal.write(KernelsEvent(items=items))
    for parity in compared:
        if not parity.holds:
            why = parity.fault or f"relative difference {parity.difference:.1e}, limit {parity.tolerance:.0e}"
            journal.warning(
                f"the kernel for {parity.operation} ({parity.implementation}) is disabled, the PyTorch reference is "
                f"used: {why}",
                code="kernel_off",
            )


def _require_steps(loader: Loader, plan: Plan) -> None:
    if loader.total_steps != plan.batch.total_steps:
        raise RunFault(
            f"the prepared data gives {loader.total_steps} steps, the plan has {plan.batch.total_steps}",
            where=plan.data.train.index,
            remedy="prepare the data again: start a new run with another --run-dir",
        )

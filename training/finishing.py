"""After the last step: load the best weights (early stopping), evaluate, export."""

from functools import partial
from pathlib import Path

import torch

from tunesmith.data.index.integrity import record_faults
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.errors import RunFault
from tunesmith.evaluation.answers import spread
from tunesmith.evaluation.trained import load_trained
from tunesmith.modeling.adapters.output_ratio import has_adapters, output_ratio
from tunesmith.modeling.loading.heads import labels_of
from tunesmith.modeling.precision import autocast_dtype
from tunesmith.rundir.events import ExportEvent
from tunesmith.rundir.fence import require_newest
from tunesmith.training.checkpoint.checkpoints import load_trained_parameters
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.stages import Stage
from tunesmith.training.evaluation import Evaluation
from tunesmith.training.export.export import export_run
from tunesmith.training.learning import VERDICTS
from tunesmith.training.rank_context import RankContext

NUM_ROWS, ROW_TOKENS = 4, 128
"""Of the rows on which the adapter's output is measured."""


def finish(context: RankContext, state: RunState, evaluation: Evaluation) -> None:
    """Evaluate and export the trained model. Every rank calls this. The engine is closed on return."""
    if context.plan.recipe.evaluation.early_stopping:
        evaluation.evaluate("during")
        with context.watchdog.stage(Stage.BEST, state.step):
            load_best(context, state)
    evaluation.after()
    context.journal.phase("exporting")
    context.engine.close()
    with context.watchdog.stage(Stage.EXPORT, state.step):
        context.ranks.from_first(partial(_export, context, state.step))
        context.ranks.barrier()  # a rank that left early could not pass the result on to one that is late


def load_best(context: RankContext, state: RunState) -> None:
    """Set engine and state to the step of the lowest validation loss, if that is not the last step."""
    best = state.best_step
    if best is None or best == state.step:
        return
    if context.ranks.from_first(partial(_has_best, context, state.step, best)):
        context.engine.load(load_trained_parameters(context.run.checkpoint(best)), None, 0)
        state.step = best
        message = f"exporting the weights of step {best}, which had the lowest validation loss"
    else:
        message = "no step had a lower validation loss than the untrained model: exporting the last weights"
    context.journal.warning(message, code="best_step")


def _has_best(context: RankContext, step: int, best: int) -> bool:
    """False for the untrained model (step 0), which has none. Raises RunFault if another checkpoint is missing."""
    path = context.run.checkpoint(best)
    if not path.is_dir() and best != 0:
        raise RunFault(
            f"the checkpoint of step {best}, which had the lowest validation loss, is missing",
            where=str(path),
            remedy=f"restore it and resume the run, or export other weights: tunesmith export {context.run.root} "
            f"--step {step}",
        )
    return path.is_dir()


def _export(context: RankContext, step: int) -> None:
    require_newest(context.run, context.attempt)
    context.journal.warn_of_damage(record_faults(context.run, context.plan))
    model = context.engine.loss_module.model
    if context.engine.sharded:  # no rank has the whole model: it is loaded from the checkpoint into CPU memory
        model = load_trained(context.plan, context.run.checkpoint(step), device="cpu")
    require_moderate_adapter(model, context)
    result = export_run(
        model,
        context.run,
        context.plan,
        context.tokenizer,
        step=step,
        attempt=context.attempt,
        allowed=partial(require_newest, context.run, context.attempt),
    )
    context.journal.write(ExportEvent(path=str(result.path), form=result.form, gate=result.gate))


def require_moderate_adapter(model: torch.nn.Module, context: RankContext) -> None:
    """Raise RunFault if the adapter's output exceeds that of the layers by so much that the model is destroyed."""
    verdict, plan = VERDICTS["adapter_saturated"], context.plan
    directory = Path((plan.data.validation or plan.data.train).index)
    if not has_adapters(model) or not directory.is_dir():  # the cache may have been cleaned since the start
        return
    index = TokenIndex.open(directory)
    numbers = [number for number, _ in zip(spread(index.num_documents), range(NUM_ROWS), strict=False)]
    labels = labels_of(plan)
    end = -labels.num_targets if labels is not None else None  # the labels of a classifier are no tokens
    rows = [index.document(number).tokens[:end][:ROW_TOKENS].tolist() for number in numbers]
    ratio = output_ratio(model, rows, autocast_dtype(plan.compute.precision))
    if ratio is not None and ratio > verdict.limit:
        raise verdict.fault(
            f"the output of the adapter is {ratio:.3g} times that of the layers it adapts, on {len(rows)} rows of the "
            "data: the learning rate was too high",
            f"{context.journal.status.step} steps",
        )

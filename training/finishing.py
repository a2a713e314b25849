"""After the last step: the best weights where the recipe asks for them, the last evaluation, the export."""

from functools import partial

from tunesmith.errors import RunFault
from tunesmith.evaluation.trained import load_trained
from tunesmith.rundir.events import ExportEvent
from tunesmith.rundir.fence import require_newest
from tunesmith.training.checkpoint.checkpoints import load_trained_parameters
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.evaluation import Evaluation
from tunesmith.training.export.export import export_run
from tunesmith.training.rank_context import RankContext


def finish(context: RankContext, state: RunState, evaluation: Evaluation) -> None:
    """Every rank calls this. The engine is closed when it returns."""
    if context.plan.recipe.evaluation.early_stopping:
        evaluation.evaluate("during")
        load_best(context, state)
    evaluation.after()
    context.journal.phase("exporting")
    context.engine.close()
    context.ranks.from_first(partial(_export, context, state.step), long_running=True)


def load_best(context: RankContext, state: RunState) -> None:
    """Set engine and state to the step of the lowest validation loss, where that is not the last one."""
    best = state.best_step
    if best is None or best == state.step:
        return
    if context.ranks.from_first(partial(_has_best, context, state.step, best)):
        context.engine.load(load_trained_parameters(context.run.checkpoint(best)), None, 0)
        state.step = best
        message = f"the weights of step {best} are exported: their validation loss was the lowest"
    else:
        message = "no step had a lower validation loss than the untrained model: the last weights are exported"
    context.journal.warning(message, code="best_step")


def _has_best(context: RankContext, step: int, best: int) -> bool:
    """False for the untrained model, which has none. Raises RunFault where the checkpoint of a step is gone."""
    path = context.run.checkpoint(best)
    if not path.is_dir() and best != 0:
        raise RunFault(
            f"the checkpoint of step {best}, whose validation loss was the lowest, is not there any more",
            where=str(path),
            remedy=f"bring it back and resume the run; or take other weights: tunesmith export {context.run.root} "
            f"--step {step}",
        )
    return path.is_dir()


def _export(context: RankContext, step: int) -> None:
    require_newest(context.run, context.attempt)
    model = context.engine.loss_module.model
    if context.engine.sharded:  # no rank has it: put together from its files, in the memory of the CPU
        model = load_trained(context.plan, context.run.checkpoint(step), device="cpu")
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

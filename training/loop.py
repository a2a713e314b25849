"""The training loop, from the first step to the last, in chronological order."""

import math
import resource
import time
from dataclasses import dataclass
from typing import Literal

import torch

from tunesmith.data.index.loader import Loader, StepBatch
from tunesmith.errors import RunFault
from tunesmith.rundir.commit import fault_point
from tunesmith.rundir.events import StepEvent
from tunesmith.rundir.ledger import Ledger
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.interruption import Interruption
from tunesmith.training.distributed.stages import Stage
from tunesmith.training.engine.protocol import BatchSums
from tunesmith.training.evaluation import Evaluation
from tunesmith.training.optim.schedule import learning_rate
from tunesmith.training.rank_context import RankContext
from tunesmith.training.saving import Saving
from tunesmith.training.seeds import seed_step

Outcome = Literal["done", "early_stopped", "preempted"]


@dataclass(frozen=True)
class Training:
    """The components that the loop uses."""

    context: RankContext
    state: RunState
    loader: Loader
    ledger: Ledger
    evaluation: Evaluation
    saving: Saving
    interruption: Interruption


def train(run: Training) -> Outcome:
    """Train from `run.state.step` to the plan's last step. RunFault if the losses show that nothing was learned."""
    plan, state, engine, ranks = run.context.plan, run.state, run.context.engine, run.context.ranks
    watchdog, total_steps = run.context.watchdog, plan.batch.total_steps

    while state.step < total_steps and not state.stopped_early:
        run.saving.check()
        if ranks.any(run.interruption.check()):
            run.saving.save(reason="preemption")
            return "preempted"

        started = time.perf_counter()
        step = state.step + 1
        with watchdog.stage(Stage.DATA, step):
            fault_point("step.data")
            batch = run.loader.step_batch(step)
            run.ledger.write(step, batch.samples, batch.rows, batch.num_tokens, batch.supervised_tokens)

        with watchdog.stage(Stage.FORWARD, step):
            seed_step(plan.recipe.seed, step, ranks.rank)
            fault_point("step.forward")
            sums = engine.train_batch(batch)

        with watchdog.stage(Stage.UPDATE, step):
            fault_point("step.update")
            rate = learning_rate(
                step,
                total_steps=total_steps,
                warmup_steps=plan.batch.warmup_steps,
                optimization=plan.recipe.optimization,
            )
            grad_norm, updated = engine.optim_step(rate)
        fault_point("step.done")

        state.step = step
        _account(run, batch, sums, updated)
        seconds = time.perf_counter() - started
        state.train_seconds += seconds
        run.context.journal.step(
            StepEvent(
                total_steps=total_steps,
                tokens_per_s=batch.global_num_tokens / seconds if seconds else 0.0,
                step=step,
                epoch=batch.epoch,
                loss=sums.loss_sum / sums.num_targets,
                learning_rate=rate,
                grad_norm=grad_norm,
                num_tokens=batch.global_num_tokens,
                supervised_tokens=sums.supervised_tokens,
                token_accuracy=sums.num_correct / sums.num_targets,
                step_s=seconds,
                peak_memory_bytes=peak_memory_bytes(plan.compute.device),
                skipped=not updated,
            )
        )

        is_best = False
        # Early stopping selects among the evaluations made before the last checkpoint is written.
        last = step == total_steps and plan.recipe.evaluation.early_stopping is not None
        if _due(step, plan.batch.evaluation_every_steps) or last:
            is_best = run.evaluation.evaluate("during")
        if _due(step, plan.batch.checkpoint_every_steps):
            run.saving.save(reason="schedule")
        elif is_best and plan.recipe.evaluation.early_stopping:
            run.saving.save(reason="best")

    run.saving.save(reason="end")
    _require_learning(state)
    return "early_stopped" if state.stopped_early else "done"


def peak_memory_bytes(device: str) -> int:
    """Peak memory of this process so far: reserved on the GPU, or resident."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _due(step: int, every_steps: int | None) -> bool:
    return every_steps is not None and step % every_steps == 0


def _account(run: Training, batch: StepBatch, sums: BatchSums, updated: bool) -> None:
    """Update the state after a step; RunFault if too many steps in a row had a non-finite loss or gradient."""
    state, limit = run.state, run.context.plan.recipe.optimization.max_skipped_steps
    state.num_tokens += batch.global_num_tokens
    state.supervised_tokens += sums.supervised_tokens
    if updated and math.isfinite(sums.loss_sum):
        state.num_updates += 1
        state.skipped_in_row = 0
        state.note_loss(sums.loss_sum / sums.num_targets)
        return
    state.skipped_in_row += 1
    run.context.journal.warning(
        f"step {state.step}: skipped because its gradient was not finite; rows: {_preview(batch.rows)}",
        code="step_skipped",
    )
    if state.skipped_in_row > limit:
        raise RunFault(
            f"loss or gradient was not finite in {state.skipped_in_row} steps in a row",
            where=f"steps {state.step - state.skipped_in_row + 1} to {state.step}",
            remedy="lower optimization.learning_rate, set max_grad_norm, or inspect the rows named in the warnings",
        )


def _require_learning(state: RunState) -> None:
    """Fail a run that completed but cannot have learned anything."""
    if state.num_updates == 0:
        raise RunFault(
            "no step changed the weights: nothing was trained",
            where=f"{state.step} steps",
            remedy="inspect the warnings in events.jsonl; check that the data set is not empty and the loss is finite",
        )
    if state.num_updates >= 5 and state.lowest_loss == state.highest_loss:
        raise RunFault(
            f"the training loss was exactly {state.lowest_loss} in every step: nothing was learned",
            where=f"{state.step} steps",
            remedy="check that optimization.learning_rate is above zero and that the rows differ",
        )


def _preview(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:8])) + (" ..." if len(rows) > 8 else "")

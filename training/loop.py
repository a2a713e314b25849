"""The training loop, from the first step to the last, in chronological order."""

import math
import resource
import time
from dataclasses import dataclass
from typing import Literal

import torch

from tunesmith.data.index.loader import Loader
from tunesmith.rundir.events import StepEvent
from tunesmith.rundir.faults import fault_point
from tunesmith.rundir.ledger import Ledger
from tunesmith.training import kernel_fallback
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.interruption import Interruption
from tunesmith.training.evaluation import Evaluation
from tunesmith.training.learning import SOLVED_LOSS, VERDICTS, require_gradient
from tunesmith.training.rank_context import RankContext
from tunesmith.training.saving import Saving
from tunesmith.training.step import Steps, TrainedStep

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
    """Train from `run.state.step` to the plan's last step. RunFault if its numbers show that it cannot learn
    (training.learning)."""
    plan, state = run.context.plan, run.state
    total_steps, steps = plan.batch.total_steps, Steps(run.context, run.loader)

    while state.step < total_steps and not state.stopped_early:
        run.saving.check()
        if _is_stopped(run):
            run.saving.save(reason="preemption")
            return "preempted"

        started = time.perf_counter()
        step = state.step + 1
        trained = steps.train(step)
        batch, sums, updated = trained.batch, trained.sums, trained.updated
        routing = sums.routing
        entry = step, batch.samples, batch.rows, batch.num_tokens, batch.supervised_tokens
        datasets = plan.data.samples_by_dataset(batch.samples)
        run.ledger.write(*entry, trained.passes, datasets=datasets, skipped=not updated)
        fault_point("step.done")

        state.step = step
        _account(run, trained)
        seconds = time.perf_counter() - started
        state.train_seconds += seconds
        run.context.journal.step(
            StepEvent(
                total_steps=total_steps,
                tokens_per_s=batch.global_num_tokens / seconds if seconds else 0.0,
                step=step,
                epoch=batch.epoch,
                loss=sums.loss_sum / sums.num_targets,
                learning_rate=trained.learning_rate,
                grad_norm=trained.grad_norm,
                num_tokens=batch.global_num_tokens,
                supervised_tokens=sums.supervised_tokens,
                token_accuracy=sums.num_correct / sums.num_targets,
                step_s=seconds,
                peak_memory_bytes=peak_memory_bytes(plan.compute.device),
                skipped=not updated,
                loss_scale=state.loss_scale,
                router_loss=routing.router_loss if routing else None,
                expert_load=routing.expert_load if routing else None,
                router_entropy=routing.router_entropy if routing else None,
            )
        )
        require_gradient(state)

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
    return "early_stopped" if state.stopped_early else "done"


def peak_memory_bytes(device: str) -> int:
    """Peak memory of this process so far: reserved on the GPU, or resident."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _is_stopped(run: Training) -> bool:
    """Whether any rank has been asked to stop. In the same collective, ranks agree on kernels that have failed."""
    stops, exhausted = run.context.ranks.any_of(run.interruption.check(), kernel_fallback.is_new(run.state))
    if exhausted:
        kernel_fallback.agree(run.context, run.state)
    return stops


def _due(step: int, every_steps: int | None) -> bool:
    return every_steps is not None and step % every_steps == 0


def _account(run: Training, trained: TrainedStep) -> None:
    """Update the state after a step.

    RunFault if too many steps in a row had a non-finite loss or gradient: sums and norm are over all ranks, so every
    rank decides the same.
    """
    batch, sums, grad_norm = trained.batch, trained.sums, trained.grad_norm
    state, limit = run.state, run.context.plan.recipe.optimization.max_skipped_steps
    loss_scale = run.context.engine.loss_scale
    if loss_scale is not None:
        loss_scale.store(state)
    state.num_tokens += batch.global_num_tokens
    state.supervised_tokens += sums.supervised_tokens
    if trained.updated and math.isfinite(sums.loss_sum):
        state.num_updates += 1
        state.skipped_in_row = 0
        loss = sums.loss_sum / sums.num_targets
        solved = abs(loss) <= SOLVED_LOSS
        state.note_update((loss, sums.num_correct, sums.num_targets), grad_norm, trained.learning_rate, solved=solved)
        return
    if loss_scale is not None and loss_scale.explains_skip(sums.loss_sum):
        run.context.journal.warning(
            f"step {state.step}: skipped because its gradient exceeded the range of fp16; the loss scale is now "
            f"{loss_scale.scale:g}",
            code="loss_scale",
        )
        return
    state.skipped_in_row += 1
    run.context.journal.warning(
        f"step {state.step}: skipped because its gradient was not finite; rows: {_preview(batch.rows)}",
        code="step_skipped",
    )
    if state.skipped_in_row > limit:
        raise VERDICTS["loss_not_finite"].fault(
            f"loss or gradient was not finite in {state.skipped_in_row} steps in a row",
            f"steps {state.step - state.skipped_in_row + 1} to {state.step}",
        )


def _preview(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:8])) + (" ..." if len(rows) > 8 else "")

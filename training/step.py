"""One step of training; if memory runs out, it is repeated with half the micro-batch.

The rows of a step, their order and what the loss is averaged over do not change, so that the gradient is the same up to
the order of its sums. The halved size stays in plan.json, which a resumed run reads, and in the ledger.
"""

from dataclasses import dataclass

from tunesmith.configs.micro_batch import described, halved
from tunesmith.configs.sections.method import Lora, QLora
from tunesmith.data.index.loader import Loader, StepBatch
from tunesmith.errors import InputError, OutOfMemory, TunesmithError
from tunesmith.rundir.faults import fault_point
from tunesmith.rundir.fence import require_newest
from tunesmith.rundir.resume_point import resume_point
from tunesmith.training.distributed.stages import Stage
from tunesmith.training.engine.memory import MemoryRanOut, Shortage, is_out_of_memory, largest
from tunesmith.training.engine.protocol import BatchSums
from tunesmith.training.optim.schedule import learning_rate
from tunesmith.training.rank_context import RankContext
from tunesmith.training.seeds import seed_step

_PHASES = {
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "reduction": "before the gradients were reduced",
    "update": "in the optimizer step",
    None: "while gradients were reduced or weights updated",
}


@dataclass(frozen=True)
class TrainedStep:
    """A completed step. grad_norm: before clipping. updated: False if the gradient was not finite and dropped. passes:
    micro_batch_size and passes_per_sequence, as in the plan."""

    batch: StepBatch
    sums: BatchSums
    grad_norm: float
    updated: bool
    learning_rate: float
    passes: tuple[int, int]


class Steps:
    """Trains steps in passes of the size that fits in memory."""

    def __init__(self, context: RankContext, loader: Loader):
        self._context, self._loader, self._plan = context, loader, context.plan

    def train(self, step: int) -> TrainedStep:
        """Train a step; the first is 1. Raises OutOfMemory if it cannot be repeated here, InputError if its micro-batch
        cannot be halved."""
        with self._context.watchdog.stage(Stage.DATA, step):
            fault_point("step.data")
            batch = self._loader.step_batch(step)
        while True:
            try:
                return self._train(step, batch)
            except MemoryRanOut as error:
                shortage = error.shortage
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                pass_ = largest(batch.micro_batches)
                rank = self._context.ranks.rank
                shortage = Shortage(rank, None, len(pass_.tokens), len(pass_.lengths), agreed=False)
            # Here the error is deleted, and with it the tensors in the frames of its traceback.
            self._halve(step, shortage)
            batch = self._loader.step_batch(step)

    def _train(self, step: int, batch: StepBatch) -> TrainedStep:
        context, plan = self._context, self._plan
        with context.watchdog.stage(Stage.FORWARD, step):
            seed_step(plan.recipe.seed, step, context.ranks.rank)
            fault_point("step.forward")
            sums = context.engine.train_batch(batch)
        with context.watchdog.stage(Stage.UPDATE, step):
            fault_point("step.update")
            rate = learning_rate(
                step,
                total_steps=plan.batch.total_steps,
                warmup_steps=plan.batch.warmup_steps,
                optimization=plan.recipe.optimization,
            )
            grad_norm, updated = context.engine.optim_step(rate)
        passes = plan.batch.micro_batch_size, plan.batch.passes_per_sequence
        return TrainedStep(batch, sums, grad_norm, updated, rate, passes)

    def _halve(self, step: int, shortage: Shortage) -> None:
        """Halve the micro-batch, or raise what ends the attempt. All ranks agree on the shortage, unless it ends it."""
        context, plan = self._context, self._plan
        cause = f"memory ran out on rank {shortage.rank} {_PHASES[shortage.phase]} of step {step}"
        divisible = plan.recipe.packs and shortage.num_documents > 1
        if plan.batch.micro_batch_size == 1 and not divisible:
            raise _too_large(context, cause, shortage)
        if not shortage.agreed:
            raise OutOfMemory(
                f"{cause}, with {described(plan)}",
                where=f"rank {shortage.rank}",
                remedy=f"nothing: with half the micro-batch the run continues from {resume_point(context.run)}",
                code=OutOfMemory.CODE,
            )
        context.engine.drop_gradients()
        self._plan = halved(plan, cause)
        batch = self._plan.batch
        self._loader = self._loader.with_passes(batch.micro_batch_size, batch.passes_per_sequence)
        if context.ranks.is_first:
            require_newest(context.run, context.attempt)
            self._plan.write(context.run.plan)
        context.journal.warning(
            f"{cause}: it is repeated with {described(self._plan)} instead of {described(plan)}; rows, their order and "
            "the loss stay the same",
            code="micro_batch_halved",
        )


def _too_large(context: RankContext, cause: str, shortage: Shortage) -> TunesmithError:
    """A pass that cannot be divided: name what takes less memory, in the order of what it costs."""
    plan = context.plan
    compute, recipe = plan.compute, plan.recipe
    remedies = ["close other programs that use this memory, then resume the run"]
    if plan.parallelism.zero_stage < 3 and compute.world_size > 1:
        remedies.append(f"`tunesmith resume {context.run.root} --set parallelism.zero_stage=3`")
    changes = []
    if not compute.gradient_checkpointing:
        changes.append("optimization.gradient_checkpointing: true")
    if recipe.optimization.optimizer == "adamw" and not isinstance(recipe.method, Lora):
        changes.append("optimization.optimizer: adamw_8bit")
    changes.append(f"data.max_seq_len below {shortage.num_tokens}")
    if not isinstance(recipe.method, QLora):
        changes.append(f"method.kind: {'qlora' if isinstance(recipe.method, Lora) else 'lora'}")
    remedies.append(f"start a new run with {' or '.join(changes)}")
    noun = "document" if recipe.packs else "row"
    return InputError(
        f"{cause}, with one {noun} per pass: it cannot be divided further",
        where=f"rank {shortage.rank}, a pass of {shortage.num_tokens} tokens",
        remedy="; or ".join(remedies),
    )

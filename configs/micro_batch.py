"""Halves the micro-batch of a plan after memory ran out: the same rows in the same order, in more, smaller passes."""

import math
from typing import Any

from tunesmith.configs.plan import Plan


def halved(plan: Plan, cause: str) -> Plan:
    """Return the plan with half as many sequences per forward pass, or, if it is one packed sequence already, with its
    documents distributed over twice as many passes.

    cause: where memory ran out, for the reason of the plan's choice: `memory ran out ...`.
    """
    batch = plan.batch
    size, passes = max(1, batch.micro_batch_size // 2), batch.passes_per_sequence
    if batch.micro_batch_size == 1:
        passes *= 2
    optimization = plan.recipe.optimization
    sequences = min(optimization.global_batch_size, plan.data.samples_per_epoch * optimization.epochs)
    accumulation = math.ceil(math.ceil(sequences / plan.compute.min_world_size) / size) * passes
    facts = {"micro_batch_size": size, "passes_per_sequence": passes, "grad_accum_steps": accumulation}
    values: dict[str, Any] = {"micro_batch_size": size, "grad_accum_steps": accumulation}
    reason = f"halved from {described(plan)}, because {cause}"
    choices = [
        choice.model_copy(update={"value": values[choice.key], "reason": reason, "num_bytes": None})
        if choice.key in values
        else choice
        for choice in plan.choices
    ]
    parallelism = plan.parallelism
    if parallelism.deepspeed is not None:
        config = {
            **parallelism.deepspeed,
            "train_micro_batch_size_per_gpu": size,
            "gradient_accumulation_steps": accumulation,
        }
        parallelism = parallelism.model_copy(update={"deepspeed": config})
    return plan.model_copy(
        update={"batch": batch.model_copy(update=facts), "choices": choices, "parallelism": parallelism}
    )


def described(plan: Plan) -> str:
    """Return the size of a forward pass in words: `4 sequences per pass`, `1/2 of a sequence per pass`."""
    size, passes = plan.batch.micro_batch_size, plan.batch.passes_per_sequence
    noun = "sequence" if plan.recipe.packs else "row"
    if passes > 1:
        return f"1/{passes} of a {noun} per pass"
    return f"{size} {noun}{'s' if size > 1 else ''} per pass"

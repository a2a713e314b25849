"""Disk space of a run: checkpoints, export and logs."""

import math

from tunesmith.configs.plan import ModelFacts, Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Lora
from tunesmith.launcher.planning.memory import ADAMW_BYTES, FP32_BYTES


def checkpoint_bytes(model: ModelFacts) -> int:
    """Size of one checkpoint: trained weights and two moments in fp32, and a little for state and manifest."""
    return model.num_trained_params * (FP32_BYTES + ADAMW_BYTES) + (64 << 10)


def export_bytes(recipe: Recipe, model: ModelFacts) -> int:
    """Size of the export in fp32: the adapter or the full model, and the tokenizer files."""
    form = recipe.export.form
    if form == "auto":
        form = "merged" if recipe.model.add_tokens or recipe.model.adapter == "merge" else "adapter"
    adapter = isinstance(recipe.method, Lora) and form == "adapter"
    carried = 0 if adapter or model.carried is None else model.carried.num_bytes
    return (model.num_trained_params if adapter else model.num_params) * FP32_BYTES + carried + (8 << 20)


LOGS_BYTES = 16 << 20
"""Events, ledger, receipts and logs of a typical run."""


def disk_need(plan: Plan) -> tuple[int, int]:
    """Maximum size of the run in bytes, and maximum number of checkpoints at a time.

    Counts the checkpoints that are kept, the best, and the one that is written before the oldest is deleted.
    """
    keep = plan.recipe.checkpoint.keep_last + (1 if plan.recipe.evaluation.early_stopping else 0)
    written = math.ceil(plan.batch.total_steps / plan.batch.checkpoint_every_steps)
    num_checkpoints = min(keep + 1, written + 1)
    export = export_bytes(plan.recipe, plan.model)
    return num_checkpoints * plan.compute.checkpoint_bytes + export + LOGS_BYTES, num_checkpoints

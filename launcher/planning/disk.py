"""How much disk a run needs: checkpoints, export and logs."""

import math

from tunesmith.configs.plan import ModelFacts, Plan
from tunesmith.configs.recipe import Lora, Recipe
from tunesmith.launcher.planning.memory import ADAMW_BYTES, FP32_BYTES


def checkpoint_bytes(model: ModelFacts) -> int:
    """One checkpoint on disk: trained weights and two moments in fp32, and a little for state and manifest."""
    return model.num_trained_params * (FP32_BYTES + ADAMW_BYTES) + (64 << 10)


def export_bytes(recipe: Recipe, model: ModelFacts) -> int:
    """The export on disk, in fp32: the adapter alone, or the whole model; and the tokenizer's files."""
    adapter = isinstance(recipe.method, Lora) and recipe.export.form != "merged"
    return (model.num_trained_params if adapter else model.num_params) * FP32_BYTES + (8 << 20)


LOGS_BYTES = 16 << 20
"""Events, ledger, receipts and logs of a usual run."""


def disk_need(plan: Plan) -> tuple[int, int]:
    """Bytes that the run will take at most, and how many checkpoints lie there at once.

    Those that are kept, the best, and the one being written before the oldest is deleted.
    """
    keep = plan.recipe.checkpoint.keep_last + (1 if plan.recipe.evaluation.early_stopping else 0)
    written = math.ceil(plan.batch.total_steps / plan.batch.checkpoint_every_steps)
    num_checkpoints = min(keep + 1, written + 1)
    export = export_bytes(plan.recipe, plan.model)
    return num_checkpoints * plan.compute.checkpoint_bytes + export + LOGS_BYTES, num_checkpoints

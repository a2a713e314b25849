"""Chooses whether checkpoints are written in the background from a copy in memory, or while training waits."""

from tunesmith.configs.plan import Choice, ModelFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError
from tunesmith.launcher.planning.memory import ADAMW_BYTES, FP32_BYTES
from tunesmith.report.wording import size


def choose_saving(recipe: Recipe, model: ModelFacts, spare_bytes: int) -> tuple[int, Choice]:
    """Return the size of the copy in bytes (0: none) and the choice. spare_bytes: CPU memory not used by training.

    Raises InputError if the recipe requires a copy that does not fit.
    """
    requested, key = recipe.checkpoint.background, "checkpoint.background"
    copy = model.num_trained_params * (FP32_BYTES + ADAMW_BYTES)
    if requested is False:
        return 0, Choice(key=key, value="no", reason="set in the recipe: training waits while a checkpoint is written")
    if copy > spare_bytes:
        if requested:
            raise InputError(
                f"a copy of the trained state takes {size(copy)}, but only {size(max(0, spare_bytes))} are free",
                where=f"key {key}",
                remedy=f"remove {key}: training then waits while a checkpoint is written",
            )
        why = f"a copy would take {size(copy)}, but {size(max(0, spare_bytes))} are free: training waits for the disk"
        return 0, Choice(key=key, value="no", reason=why)
    why = "set in the recipe" if requested else "enough memory is free"
    reason = f"{why}: the first rank copies weights and moments and writes them while training continues"
    return copy, Choice(key=key, value="yes", reason=reason, num_bytes=copy)

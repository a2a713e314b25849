"""Whether checkpoints are written beside the training, from a copy in memory, or while the loop waits."""

from tunesmith.configs.plan import Choice, ModelFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError
from tunesmith.launcher.planning.memory import ADAMW_BYTES, FP32_BYTES
from tunesmith.report.wording import size


def choose_saving(recipe: Recipe, model: ModelFacts, spare_bytes: int) -> tuple[int, Choice]:
    """Bytes of the copy (0: none) and why. spare_bytes: of the CPU's memory, beside what training takes.

    Raises InputError where the recipe asks for a copy that does not fit.
    """
    wanted, key = recipe.checkpoint.background, "checkpoint.background"
    copy = model.num_trained_params * (FP32_BYTES + ADAMW_BYTES)
    if wanted is False:
        return 0, Choice(key=key, value="no", reason="set in the recipe: the loop waits while a checkpoint is written")
    if copy > spare_bytes:
        if wanted:
            raise InputError(
                f"a copy of what is trained takes {size(copy)}, and {size(max(0, spare_bytes))} are left beside it",
                where=f"key {key}",
                remedy=f"leave out {key}: the loop then waits while a checkpoint is written",
            )
        why = f"a copy would take {size(copy)}, {size(max(0, spare_bytes))} are left: the loop waits for the disk"
        return 0, Choice(key=key, value="no", reason=why)
    why = "set in the recipe" if wanted else "memory is left for it"
    reason = f"{why}: the first rank copies weights and moments and writes them while the loop goes on"
    return copy, Choice(key=key, value="yes", reason=reason, num_bytes=copy)

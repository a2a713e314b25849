"""What a checkpoint belongs to."""

import json

from tunesmith.configs.plan import Plan
from tunesmith.configs.recipe import Recipe


def fingerprints_of(plan: Plan) -> dict[str, str]:
    """What a checkpoint belongs to: the model, the data, and how the trained parameters came about.

    Nothing of resources and parallelism: these may change in the middle of a run.
    """
    recipe = plan.recipe
    task = [recipe.task, *(getattr(recipe, section).model_dump() for section in _sections(recipe))]
    return {
        "model": plan.model.fingerprint,
        "data": plan.data.fingerprint,
        "method": recipe.method.model_dump_json(),
        "seed": str(recipe.seed),
        "global_batch_size": str(recipe.optimization.global_batch_size),
        # A key that earlier versions did not know is left out while it changes nothing: their checkpoints go on.
        "optimization": recipe.optimization.model_dump_json(exclude=None if recipe.optimization.z_loss else {"z_loss"}),
        "task": json.dumps(task),
    }


def _sections(recipe: Recipe) -> list[str]:
    """Sections of tasks that a fingerprint covers: those that the first versions had, whatever the task, so that their
    checkpoints go on; of later ones that of the recipe's own task."""
    own = recipe.task_facts.section
    first = ["preference", "classification", "seq2seq"]
    return first if own is None or own in first else [*first, own]

"""Fingerprints of a checkpoint: the model, data and recipe that it belongs to."""

import json

from tunesmith.configs.plan import Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.optimization import Optimization

_NEWER = ("z_loss", "router_loss")
"""Keys of the section `optimization` that were added after its checkpoints existed."""


def fingerprints_of(plan: Plan) -> dict[str, str]:
    """Return the fingerprints of the model, the data, and the recipe sections that shape the trained parameters.

    Resources and parallelism are not included: these may change when a run is resumed.
    """
    recipe = plan.recipe
    task = [recipe.task, *(getattr(recipe, section).model_dump() for section in _sections(recipe))]
    return {
        "model": plan.model.fingerprint,
        "data": plan.data.fingerprint,
        "method": recipe.method.model_dump_json(),
        "seed": str(recipe.seed),
        "global_batch_size": str(recipe.optimization.global_batch_size),
        "optimization": recipe.optimization.model_dump_json(exclude=_without_effect(recipe.optimization)),
        "task": json.dumps(task),
        **({} if plan.data.epoch_samples is None else {"mixture": mixture_of(plan)}),
    }


def mixture_of(plan: Plan) -> str:
    """Return what the order of a mixture depends on besides seed and data: the samples per epoch of each data set."""
    return json.dumps([[each.name, each.first_sample, each.samples_per_epoch] for each in plan.data.mixed])


def _without_effect(optimization: Optimization) -> set[str]:
    """Keys unknown to earlier versions, while they have their defaults, so that their checkpoints still match, and
    keys that do not change what is computed."""
    fields = type(optimization).model_fields
    unset = {key for key in _NEWER if getattr(optimization, key) == fields[key].get_default(call_default_factory=True)}
    return unset | {"offload_activations"}


def _sections(recipe: Recipe) -> list[str]:
    """Task sections that the fingerprint covers: those of the first versions, whatever the task, so that their
    checkpoints still match; of later sections only that of the recipe's task."""
    own = recipe.task_facts.section
    first = ["preference", "classification", "seq2seq"]
    return first if own is None or own in first else [*first, own]

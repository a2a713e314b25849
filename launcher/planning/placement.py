"""The recipe keys that do not determine what a run trains; they may be changed when it is resumed."""

from collections.abc import Sequence

from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError

PLACES = ("resources.", "parallelism.", "tracking")
"""Keys of placement, sharding and trackers; they may be changed when a run is resumed."""


def with_placement(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with `key=value` overrides of PLACES. Raises InputError for any other key, and for invalid values."""
    for override in overrides:
        if not override.strip().startswith(PLACES):
            raise InputError(
                "this key cannot be changed when a run is resumed",
                where=f"--set {override}",
                remedy="only resources..., parallelism... and tracking can; start a new run for anything else",
            )
    return load_recipe_text(recipe.model_dump_json(), "plan.json", overrides) if overrides else recipe

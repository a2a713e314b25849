"""What of a recipe says where and how sharded a run is trained, and may change in the middle of it."""

from collections.abc import Sequence

from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError

PLACES = ("resources.", "parallelism.")
"""Sections that say where and how divided a run is trained: they may change in the middle of it."""


def placed_anew(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with `key=value` overrides of PLACES. Raises InputError for any other key, and for bad values."""
    for override in overrides:
        if not override.strip().startswith(PLACES):
            raise InputError(
                "this key cannot be changed in the middle of a run",
                where=f"--set {override}",
                remedy=f"only {' and '.join(f'{place}...' for place in PLACES)} can; start a new run for anything else",
            )
    return load_recipe_text(recipe.model_dump_json(), "plan.json", overrides) if overrides else recipe

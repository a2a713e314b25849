"""The recipe of the best trial as a file: the recipe with its values, ready for `tunesmith train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.search_space import override
from tunesmith.data.readers.storage import is_url
from tunesmith.launcher.planning.prepare_run import Request

PATHS = (
    ("model", "base"),
    ("model", "adapter_base"),
    ("model", "chat_template"),
    ("method", "start_from"),
    ("data", "train"),
    ("data", "validation"),
    ("evaluation", "retain"),
    ("parallelism", "deepspeed_config"),
)
"""Keys whose relative paths depend on the directory of the recipe."""
MAX_NAME = 64


def best_recipe(request: Request, values: Mapping[str, Any], heading: str) -> str:
    """The text of the recipe with these values, named NAME-best. heading: a comment for its first line.

    Relative paths are written as absolute ones, since the file is in another directory.
    """
    settings = [override(key, value) for key, value in values.items()]
    recipe = load_recipe_text(request.text, str(request.file), [*request.overrides, *settings])
    content = recipe.model_dump(mode="json", exclude_unset=True)
    content["name"] = f"{recipe.name[: MAX_NAME - 5]}-best"
    for section, key in PATHS:
        if (value := content.get(section, {}).get(key)) is not None:
            content[section][key] = _absolute(value, request.directory)
    return f"# {heading}\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}"


def _absolute(value: Any, recipe_dir: Path) -> Any:
    """A path or pattern, or a list of them, relative to the recipe or else to the working directory."""
    if isinstance(value, list):
        return [_absolute(each, recipe_dir) for each in value]
    if not isinstance(value, str) or is_url(value):
        return value
    path = Path(value).expanduser()
    for folder in (recipe_dir, Path.cwd()):
        whole = folder / path
        if whole.exists() or (not path.is_absolute() and next(folder.glob(value), None) is not None):
            return str(whole)
    return value  # such as a Hub ID

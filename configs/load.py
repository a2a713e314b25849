"""Load a recipe: YAML and `--set` overrides become a Recipe, or one InputError that lists every problem.

Messages name file, line, key and the nearest known key, with the allowed values and the given one.
"""

import json
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

from pydantic import ValidationError

from tunesmith.configs.allowed import keys_at, kinds_of, schema_at
from tunesmith.configs.problems import convert_numbers, problems_of, raise_problems
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.yaml_tree import InvalidYaml, KeyPath, Problem, Tree, key_name, read_tree
from tunesmith.errors import InputError

MAX_BYTES = 1 << 20


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe file. overrides: `key.path=value` with the value in YAML. Raises InputError."""
    return load_recipe_text(read_recipe_text(path), str(path), overrides)


def read_recipe_text(path: Path) -> str:
    """Return the text of a recipe file. Raises InputError if it is missing, unreadable, not text or too large."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(
                f"this file is too large for a recipe ({path.stat().st_size:,} bytes)",
                where=str(path),
                remedy="pass the recipe (a YAML file); the recipe names the data files",
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError("recipe not found", where=str(path), remedy=_recipes_near(path)) from None
    except IsADirectoryError:
        remedy = _recipes_near(path / "x")
        raise InputError("this is a directory, not a recipe", where=str(path), remedy=remedy) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"the recipe is not UTF-8 text (byte {error.start})", where=str(path), remedy="save it as UTF-8"
        ) from None
    except OSError as error:
        raise InputError(
            f"the recipe cannot be read: {error.strerror}", where=str(path), remedy="check the path and its permissions"
        ) from error


def load_recipe_text(text: str, source: str = "recipe.yaml", overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe from YAML text. source: its name in error messages. Raises InputError.

    An override creates missing sections. Overriding `method.kind` removes the keys that the new kind does not have:
    `--set method.kind=full` works on a LoRA recipe.
    """
    tree = _parse(text, source)
    problems = list(tree.problems)
    for argument in overrides:
        problems += _override(tree, argument)
    _open_empty_sections(tree)
    recipe, schema_problems = _validate(tree)
    problems += schema_problems
    problems.sort(key=lambda problem: _line(problem.place, source))
    raise_problems(problems, source)
    assert recipe is not None
    return recipe


def _parse(text: str, source: str) -> Tree:
    try:
        tree = read_tree(text, source)
    except InvalidYaml as error:
        lines = text.splitlines()
        place = source if error.line is None else f"{source}:{error.line}, column {error.column}"
        shown = lines[error.line - 1].strip() if error.line and error.line <= len(lines) else ""
        remedy = f"check this line and the one before: {shown[:80]}" if shown else "check colons and brackets"
        if "'\\t'" in error.message:
            remedy = "indent with spaces: YAML does not allow tabs there"
        raise InputError(f"the recipe is not valid YAML: {error.message}", where=place, remedy=remedy) from None
    if not isinstance(tree.values, dict):
        what = "the recipe is empty" if tree.values is None else "a recipe is a mapping of `key: value` lines"
        keys = ", ".join(keys_at((), None))
        raise InputError(what, where=source, remedy=f"its keys are {keys}; name, model, method and data are required")
    return tree


def _validate(tree: Tree) -> tuple[Recipe | None, list[Problem]]:
    try:
        # As JSON, since pydantic's strict mode then still accepts a list for a tuple.
        return Recipe.model_validate_json(json.dumps(tree.values), strict=True), []
    except ValidationError as error:
        findings = error.errors(include_url=False)
    if convert_numbers(findings, tree):
        return _validate(tree)
    return None, problems_of(findings, tree)


def _open_empty_sections(tree: Tree) -> None:
    """Treat `evaluation:` with all keys below it commented out as a section of defaults."""
    for key, value in tree.values.items():
        if value is None and (node := schema_at((key,), None)) and node.get("type") == "object":
            tree.values[key] = {}


def _override(tree: Tree, argument: str) -> list[Problem]:
    """Set one `key.path=value`; return the problems of the argument itself."""
    place = f"--set {argument}"
    name, equals, text = argument.partition("=")
    path: KeyPath = tuple(part.strip() for part in name.split("."))
    if not equals or not all(path):
        return [Problem("an override has the form key=value", place, "for example --set optimization.epochs=2")]
    try:
        value = read_tree(text, place, line_of_source=False)
    except InvalidYaml as error:
        what = f"the value of `{name}` is not valid YAML: {error.message}"
        return [Problem(what, place, "quote it for the shell", name)]
    holder = tree.values
    for number, part in enumerate(path[:-1]):
        if not isinstance(holder.get(part), dict):
            if holder.get(part) is not None:
                what = f"`{name}` cannot be set: `{key_name(path[: number + 1])}` is not a section"
                return [Problem(what, place, f"set `{key_name(path[: number + 1])}` as a whole", name)]
            holder[part] = {}
            tree.places.setdefault(path[: number + 1], place)
        holder = holder[part]
    if path[-1] == "kind":
        _drop_keys_of_other_kind(tree, path[:-1], holder, value.values)
    holder[path[-1]] = value.values
    for table in (tree.places, tree.plain):
        for old in [key for key in table if key[: len(path)] == path]:
            del table[old]
    tree.places.update({(*path, *below): place for below in value.places})
    tree.plain.update({(*path, *below): plain for below, plain in value.plain.items()})
    return []


def _drop_keys_of_other_kind(tree: Tree, section: KeyPath, holder: dict, kind: object) -> None:
    kinds = kinds_of(section)
    old_keys = kinds.get(str(holder.get("kind")), [])
    for key in [key for key in old_keys if str(kind) in kinds and key not in kinds[str(kind)]]:
        holder.pop(key, None)


def _recipes_near(path: Path) -> str:
    """A remedy that lists the recipes in the same directory, the closest name first."""
    folder = path.parent
    names = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    if not names:
        return "check the path; a recipe is a YAML file"
    names.sort(key=lambda name: -SequenceMatcher(None, name, path.name).ratio())
    return f"recipes in {folder}: " + ", ".join(names[:5])


def _line(place: str, source: str) -> tuple[int, int]:
    """Sort key of a problem: by line of the file, then arguments."""
    rest = place.removeprefix(f"{source}:")
    return (0, int(rest)) if rest != place and rest.isdigit() else (0, 0) if place == source else (1, 0)

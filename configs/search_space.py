"""The search space of `tunesmith tune`: the recipe keys that vary, each with its values or its range."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from tunesmith.configs.allowed import Schema, all_keys, describe, nearest, schema_at
from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.yaml_tree import Problem, Tree, as_number
from tunesmith.errors import InputError

SEARCH = "search"
VARIABLE = ("method", "optimization", "preference", "kto", "classification.class_weights", "data.packing")
"""Keys and sections that may vary. Others change the validation rows or their tokens, so that the losses of trials
could not be compared, or have no effect on them."""
SCALE_KEYS = ("preference", "kto")
"""Sections that change what the loss and the reward margin of their task measure; its accuracy stays comparable."""
DIGITS = 4
"""Significant digits of a sampled number: more make no difference to training, and the recipes readable."""
RANGE_KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Choices:
    """A key that takes one of the listed values."""

    key: str
    values: tuple[Any, ...]

    def all_values(self) -> Sequence[Any]:
        return self.values

    def shown(self) -> str:
        return ", ".join(as_text(value) for value in self.values)


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included. log: sampled evenly on a logarithmic scale. step: distance of the
    values, counted from low; None: any number, and of integers all."""

    key: str
    low: float
    high: float
    log: bool = False
    step: float | None = None
    is_integer: bool = False

    def all_values(self) -> Sequence[Any] | None:
        """The values in order; None if they are not a finite number of steps."""
        step = self.step or (1 if self.is_integer else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.rounded(self.low + number * step) for number in range(count)]

    def rounded(self, value: float) -> float:
        """The value with DIGITS significant digits, within the range; steps and integers are kept."""
        if self.is_integer:
            return round(value)
        return min(max(float(f"{value:.{12 if self.step else DIGITS}g}"), self.low), self.high)

    def shown(self) -> str:
        form = [f"{as_text(self.low)} to {as_text(self.high)}"]
        return ", ".join(form + ["log"] * self.log + [f"step {as_text(self.step)}"] * (self.step is not None))


Dimension = Choices | Range


def as_text(value: Any) -> str:
    """A value as in a recipe, without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def override(key: str, value: Any) -> str:
    """The argument of `--set` for one value."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def grid(dimensions: Sequence[Dimension], limit: int) -> list[dict[str, Any]] | None:
    """Every combination in order, the last key varies fastest; None if a range has no steps or there are more than
    `limit`."""
    values = [each.all_values() for each in dimensions]
    if any(column is None for column in values) or math.prod(len(column or ()) for column in values) > limit:
        return None
    return [dict(zip((each.key for each in dimensions), row, strict=True)) for row in product(*map(tuple, values))]  # type: ignore[arg-type]


def space_as_json(dimensions: Sequence[Dimension]) -> list[dict[str, Any]]:
    """The space for study.json, to compare it when a study is continued."""
    return json.loads(json.dumps([asdict(each) for each in dimensions]))


@dataclass(frozen=True)
class RecipeText:
    """The recipe that the search space belongs to. values: of its keys, which select the kind of method."""

    text: str
    source: str
    overrides: tuple[str, ...]
    values: Mapping[str, Any]


def read_dimensions(tree: Tree, recipe: RecipeText, *, by_accuracy: bool) -> tuple[list[Dimension], list[Problem]]:
    """Read the section `search` of a tune file. by_accuracy: the trials are compared by their accuracy.

    Each problem names the line of the tune file.
    """
    dimensions, problems = [], []
    for key, raw in tree.values[SEARCH].items():
        try:
            dimensions.append(_dimension(key, raw, tree, recipe, by_accuracy=by_accuracy))
        except _Invalid as error:
            problems.append(Problem(error.what, tree.place((SEARCH, key, *error.part)), error.remedy, key))
    return dimensions, problems


class _Invalid(Exception):
    """part: keys below the dimension's, for the line."""

    def __init__(self, what: str, remedy: str, *part: str | int):
        super().__init__(what)
        self.what, self.remedy, self.part = what, remedy, part


def _dimension(key: str, raw: Any, tree: Tree, recipe: RecipeText, *, by_accuracy: bool) -> Dimension:
    node = _variable(key, recipe, by_accuracy=by_accuracy)
    if isinstance(raw, list):
        dimension: Dimension = _choices(key, raw, node, tree)
    elif isinstance(raw, dict):
        dimension = _range(key, raw, node, tree)
    else:
        remedy = f"write {key}: [VALUE, VALUE], or {key}: {{low: NUMBER, high: NUMBER}}"
        raise _Invalid(f"`{key}` takes a list of values or a range; given: {as_text(raw)}", remedy)
    _require_valid(dimension, recipe)
    return dimension


def _variable(key: str, recipe: RecipeText, *, by_accuracy: bool) -> Schema:
    """The schema of a key; _Invalid if it is unknown or must not vary."""
    node = schema_at(tuple(key.split(".")), recipe.values)
    if node is None:
        raise _unknown(key)
    if not _is_below(key, VARIABLE):
        remedy = f"the keys that can vary are those of {', '.join(VARIABLE)}"
        raise _Invalid(f"`{key}` cannot vary: the losses of the trials could not be compared", remedy)
    if not by_accuracy and _is_below(key, SCALE_KEYS):
        remedy = "add `objective: token_accuracy`, the accuracy of the task"
        raise _Invalid(f"`{key}` changes the scale of the metric by which the trials are compared", remedy)
    if node.get("type") == "object" or "discriminator" in node:
        raise _Invalid(f"`{key}` is a section", f"vary one of its keys, such as {key}.{_first_key(node)}")
    return node


def _unknown(key: str) -> _Invalid:
    known = all_keys()
    names = [name for full_names in known.values() for name in full_names]
    if key in names:
        section = key.rpartition(".")[0]
        return _Invalid(f"the recipe's `{section}` has no key `{key}`", f"it belongs to another {section}.kind")
    word = key.rpartition(".")[2]
    suggestion = known[word][0] if word in known else nearest(key, names)
    if suggestion is None and (near := nearest(word, list(known))):
        suggestion = known[near][0]
    remedy = f"did you mean `{suggestion}`?" if suggestion else "use keys of the recipe with dots (docs/recipe.md)"
    return _Invalid(f"the recipe has no key `{key}`", remedy)


def _choices(key: str, raw: list[Any], node: Schema, tree: Tree) -> Choices:
    if not raw:
        raise _Invalid(f"`{key}` has no values", f"list them: {key}: [VALUE, VALUE]")
    is_number = bool(_types(node) & {"number", "integer"})
    values = tuple(_value(value, tree, (SEARCH, key, place), is_number) for place, value in enumerate(raw))
    for place, value in enumerate(values):
        if _same(value, values[:place]):
            raise _Invalid(f"`{key}` lists {as_text(value)} twice", "remove one of them", place)
    return Choices(key, values)


def _range(key: str, raw: dict[str, Any], node: Schema, tree: Tree) -> Range:
    types = _types(node)
    if not types & {"number", "integer"}:
        raise _Invalid(f"`{key}` takes {describe(node)}, not a range", f"list the values: {key}: [VALUE, VALUE]")
    for name in raw:
        if name not in RANGE_KEYS:
            suggestion = nearest(name, list(RANGE_KEYS))
            remedy = f"did you mean `{suggestion}`?" if suggestion else "write {low: NUMBER, high: NUMBER, log: true}"
            raise _Invalid(f"a range has no key `{name}`", remedy, name)
    if missing := [name for name in ("low", "high") if name not in raw]:
        raise _Invalid(f"the range of `{key}` has no `{missing[0]}`", "write {low: NUMBER, high: NUMBER}")
    is_integer = "number" not in types
    low, high = (_number(raw[name], name, is_integer, tree, key) for name in ("low", "high"))
    step = None if raw.get("step") is None else _number(raw["step"], "step", is_integer, tree, key)
    log = raw.get("log", False)
    if not isinstance(log, bool):
        raise _Invalid(f"`log` takes true or false; given: {as_text(log)}", "write log: true", "log")
    if low >= high:
        what = f"the range of `{key}` is empty: low {as_text(low)}, high {as_text(high)}"
        raise _Invalid(what, "low must be below high; a fixed value belongs in the recipe", "low")
    if log and low <= 0:
        raise _Invalid(f"a logarithmic range starts above 0; given: low {as_text(low)}", "raise low", "low")
    if step is not None and (step <= 0 or step > high - low):
        raise _Invalid(f"`step` must be above 0 and at most high - low; given: {as_text(step)}", "change it", "step")
    if step is not None and log:
        raise _Invalid("a range has either `step` or `log`", "remove one, or list the values", "step")
    return Range(key, low, high, log, step, is_integer)


def _number(value: Any, name: str, is_integer: bool, tree: Tree, key: str) -> Any:
    number = _value(value, tree, (SEARCH, key, name), is_number=True)
    kind = "an integer" if is_integer else "a number"
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise _Invalid(f"`{name}` of `{key}` takes {kind}; given: {as_text(value)}", f"write {name}: NUMBER", name)
    if is_integer and number != int(number):
        raise _Invalid(f"`{name}` of `{key}` takes {kind}; given: {as_text(value)}", "round it", name)
    return int(number) if is_integer else float(number)


def _value(value: Any, tree: Tree, path: tuple[str | int, ...], is_number: bool) -> Any:
    """The value; an unquoted text such as 2e-4, which YAML 1.1 reads as a string, as a number if the key takes one."""
    number = as_number(tree.plain.get(path, "")) if is_number and isinstance(value, str) else None
    return value if number is None else number


def _require_valid(dimension: Dimension, recipe: RecipeText) -> None:
    """Raise _Invalid for a value, or an end of a range, that the recipe does not accept."""
    ends: list[tuple[str | int, Any]]
    if isinstance(dimension, Choices):
        ends = list(enumerate(dimension.values))
    else:
        ends = [("low", dimension.low), ("high", dimension.high)]
    for part, value in ends:
        try:
            load_recipe_text(recipe.text, recipe.source, [*recipe.overrides, override(dimension.key, value)])
        except InputError as error:
            raise _Invalid(error.what, error.remedy or "change the value", part) from None


def _is_below(key: str, sections: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def _types(node: Schema) -> set[str]:
    return {str(option.get("type")) for option in (node, *node.get("anyOf", []))}


def _first_key(node: Schema) -> str:
    return next(iter(node.get("properties", {})), "kind")


def _same(value: Any, earlier: Sequence[Any]) -> bool:
    return any(json.dumps(value) == json.dumps(other) for other in earlier)

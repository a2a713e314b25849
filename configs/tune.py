"""The tune file (tune.yaml): the search space of `tunesmith tune`, and how it is searched."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from tunesmith.configs.allowed import describe, nearest
from tunesmith.configs.load import load_recipe_text, read_recipe_text
from tunesmith.configs.problems import raise_problems
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.search_space import SEARCH, Dimension, RecipeText, as_text, read_dimensions
from tunesmith.configs.sections.section import Section
from tunesmith.configs.tasks import Metric
from tunesmith.configs.yaml_tree import InvalidYaml, KeyPath, Problem, Tree, as_number, key_name, read_tree
from tunesmith.errors import InputError

TUNE_FILE = "tune.yaml"
_EXAMPLE = "search: {optimization.learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}}"


class MedianPruner(Section):
    """Stops a trial whose best value so far is worse than the median of the finished trials at the same step."""

    kind: Literal["median"]
    min_trials: PositiveInt = 3
    """Trials that must have finished before one is pruned."""
    min_steps: NonNegativeInt = 0
    """Optimizer steps before which no trial is pruned."""


class SuccessiveHalving(Section):
    """Asynchronous successive halving: at min_steps, min_steps * factor, ... only the best 1/factor continue."""

    kind: Literal["successive_halving"]
    min_steps: PositiveInt | None = None
    """Optimizer steps of the first comparison; null: evaluation.every_steps."""
    factor: Annotated[int, Field(ge=2)] = 4


class NoPruner(Section):
    """Every trial runs to its end."""

    kind: Literal["none"]


Pruner = MedianPruner | SuccessiveHalving | NoPruner
PRUNERS = ("median", "successive_halving", "none")


def _kind_as_written(value: object) -> object:
    """Read a pruner without options, which may be written as its name."""
    return {"kind": value} if isinstance(value, str) else value


class Tune(Section):
    """The keys of a tune file. Only `search` is required."""

    search: Annotated[dict[str, JsonValue], Field(min_length=1)]
    """Recipe keys with dots, each with a list of values or a range: {low, high, log, step}."""
    objective: str = "loss"
    """Metric of the validation rows after training by which trials are compared: loss, or another of the task."""
    max_trials: PositiveInt = 20
    """Number of trials, including failed and pruned ones."""
    parallel_trials: PositiveInt = 1
    """Trials that run at the same time."""
    time_limit_minutes: PositiveFloat | None = None
    """Minutes after which a command starts no further trial; running ones finish."""
    steps_per_trial: PositiveInt | None = None
    """Optimizer steps of a trial (optimization.max_steps); null: as in the recipe."""
    sampler: Literal["auto", "tpe", "random", "grid"] = "auto"
    """How values are chosen. auto: every combination if there are at most max_trials, otherwise tpe."""
    pruner: Annotated[Pruner, Field(discriminator="kind"), BeforeValidator(_kind_as_written)] = MedianPruner(
        kind="median"
    )
    """Which trials are stopped early, by the objective at the evaluation steps."""
    seed: NonNegativeInt = 0
    """Seed of the sampler."""


@dataclass(frozen=True)
class TuneFile:
    """A valid tune file for a recipe. metric: the objective. pruner_is_set: whether the file has the key."""

    path: Path
    tune: Tune
    dimensions: tuple[Dimension, ...]
    metric: Metric
    pruner_is_set: bool


def load_tune(path: Path, recipe_text: str, recipe_source: str, overrides: Sequence[str] = ()) -> TuneFile:
    """Load a tune file for a recipe with `--set` overrides.

    Raises InputError that lists every problem with file and line, also those of the combination: metrics that the task
    does not have, no validation rows, a pruner without evaluations during training.
    """
    recipe = load_recipe_text(recipe_text, recipe_source, overrides)
    tree = _parse(path)
    tune, problems = _validate(tree)
    problems = [*tree.problems, *problems]
    dimensions: list[Dimension] = []
    metric = _metric(recipe, str(tree.values.get("objective", "loss")))
    if isinstance(tree.values.get(SEARCH), dict):
        whole = RecipeText(recipe_text, recipe_source, tuple(overrides), recipe.model_dump(mode="json"))
        by_accuracy = metric is not None and metric.path == ("token_accuracy",)
        dimensions, unusable = read_dimensions(tree, whole, by_accuracy=by_accuracy)
        problems += unusable
    if tune is not None:
        problems += _combined(tune, recipe, metric, dimensions, tree)
    raise_problems(problems, str(path), "tune file")
    assert tune is not None
    assert metric is not None
    return TuneFile(path, tune, tuple(dimensions), metric, "pruner" in tree.values)


def metric_keys(recipe: Recipe) -> dict[str, Metric]:
    """The metrics of the recipe's task by the name that `objective` takes: the last key in the evaluation event."""
    metrics = recipe.task_facts.metrics
    return {"loss": Metric("loss", ("loss",), higher_is_better=False)} | {each.path[-1]: each for each in metrics}


def _metric(recipe: Recipe, name: str) -> Metric | None:
    return metric_keys(recipe).get(name)


def _combined(
    tune: Tune, recipe: Recipe, metric: Metric | None, dimensions: Sequence[Dimension], tree: Tree
) -> list[Problem]:
    """Problems of the tune file together with the recipe."""
    problems = []
    if metric is None:
        names = list(metric_keys(recipe))
        suggestion = nearest(tune.objective, names)
        remedy = f"did you mean `{suggestion}`?" if suggestion else f"use one of {', '.join(names)}"
        what = f"the task {recipe.task} has no metric `{tune.objective}`"
        problems.append(Problem(what, tree.place(("objective",)), remedy, "objective"))
    if not recipe.data.validation:
        what = "the recipe has no validation rows, by which the trials are compared"
        problems.append(Problem(what, tree.source, "set data.validation in the recipe, such as 0.1", "data.validation"))
    prunes = not isinstance(tune.pruner, NoPruner)
    if prunes and "pruner" in tree.values and recipe.evaluation.every_steps is None:
        what = "a pruner needs evaluations during training, and the recipe's evaluation.every_steps is not set"
        problems.append(Problem(what, tree.place(("pruner",)), "set evaluation.every_steps in the recipe", "pruner"))
    if tune.sampler == "grid" and (endless := [each.key for each in dimensions if each.all_values() is None]):
        what = f"a grid needs a list or a step for each key, and `{endless[0]}` is a range of any numbers"
        problems.append(Problem(what, tree.place((SEARCH, endless[0])), "add `step`, or list the values", endless[0]))
    if tune.steps_per_trial is not None and "optimization.max_steps" in tune.search:
        what = "steps_per_trial sets optimization.max_steps, which varies"
        problems.append(Problem(what, tree.place(("steps_per_trial",)), "remove one of them", "steps_per_trial"))
    return problems


def _parse(path: Path) -> Tree:
    if not path.exists():
        raise InputError(
            "the tune file, which states the search space, is missing",
            where=str(path),
            remedy=f"create it, for example with the line `{_EXAMPLE}`, or name another with --space",
        )
    try:
        tree = read_tree(read_recipe_text(path), str(path))
    except InvalidYaml as error:
        place = str(path) if error.line is None else f"{path}:{error.line}, column {error.column}"
        raise InputError(
            f"the tune file is not valid YAML: {error.message}",
            where=place,
            remedy="check this line and the one before",
        ) from None
    if not isinstance(tree.values, dict):
        keys = ", ".join(Tune.model_fields)
        raise InputError(f"a tune file is a mapping with the keys {keys}", where=str(path), remedy=f"add `{_EXAMPLE}`")
    return tree


def _validate(tree: Tree) -> tuple[Tune | None, list[Problem]]:
    values = dict(tree.values)
    for key, value in values.items():  # 2e4 is a string in YAML 1.1
        number = as_number(tree.plain.get((key,), "")) if isinstance(value, str) else None
        values[key] = value if number is None else number
    try:
        return Tune.model_validate_json(json.dumps(values), strict=True), []
    except ValidationError as error:
        findings = error.errors(include_url=False)
    problems = {key_name(path): _problem(finding, path, tree) for finding in findings if (path := _path(finding))}
    return None, list(problems.values())


def _path(finding: Any) -> KeyPath:
    """The key of a finding without pydantic's kind of pruner."""
    first, *rest = finding["loc"]
    return (first, *(part for part in rest if part not in PRUNERS)) if first == "pruner" else (first,)


def _problem(finding: Any, path: KeyPath, tree: Tree) -> Problem:
    key, place = key_name(path), tree.place(path)
    kind = finding["type"]
    if kind == "extra_forbidden":
        known = list(Tune.model_fields) if len(path) == 1 else _pruner_keys(tree.values["pruner"])
        suggestion = nearest(path[-1], known)
        remedy = f"did you mean `{suggestion}`?" if suggestion else f"the keys are {', '.join(known)}"
        return Problem(f"unknown key `{key}`", place, remedy, key)
    if kind == "missing":
        return Problem(f"the key `{key}` is missing", place, f"add it, such as `{_EXAMPLE}`", key)
    if path == ("pruner",):
        return Problem(f"`pruner` takes one of {', '.join(PRUNERS)}", place, "write its name, or a section", key)
    if path == (SEARCH,):
        return Problem("`search` names no keys", place, f"add them, such as `{_EXAMPLE}`", key)
    node = Tune.model_json_schema()["properties"].get(path[0], {}) if len(path) == 1 else {}
    allowed = describe(node) if node else str(finding["msg"]).lower()
    given = as_text(finding["input"])[:60]
    return Problem(f"`{key}` takes {allowed}; given: {given}", place, f"write {key_name(path[-1:])}: VALUE", key)


def _pruner_keys(raw: Any) -> list[str]:
    models = {"median": MedianPruner, "successive_halving": SuccessiveHalving}
    kind = raw.get("kind") if isinstance(raw, dict) else raw
    return list(models.get(str(kind), NoPruner).model_fields)

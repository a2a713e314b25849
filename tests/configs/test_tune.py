"""Tune files: what is read, and every problem with file and line."""

from pathlib import Path

import pytest

from tunesmith.configs.search_space import Choices, Range, grid
from tunesmith.configs.tune import MedianPruner, NoPruner, SuccessiveHalving, TuneFile, load_tune
from tunesmith.errors import InputError

RECIPE = """\
name: bot
model: {base: models/some}
method: {kind: lora, lora_rank: 16}
data: {train: [rows.jsonl], validation: 0.1}
evaluation: {every_steps: 5}
"""
CLASSIFICATION = RECIPE + "task: classification\n"
PREFERENCE = RECIPE + "task: preference\n"


@pytest.fixture
def load(tmp_path):
    """load(text, recipe, *overrides) -> TuneFile"""

    def read(text: str, recipe: str = RECIPE, *overrides: str) -> TuneFile:
        path = tmp_path / "tune.yaml"
        path.write_text(text)
        return load_tune(path, recipe, "recipe.yaml", overrides)

    return read


def test_values_and_ranges_are_read(load):
    file = load(
        "search:\n"
        "  optimization.learning_rate: {low: 1e-5, high: 1e-3, log: true}\n"
        "  method.lora_rank: [8, 16]\n"
        "  optimization.global_batch_size: {low: 4, high: 17, step: 4}\n"
        "  optimization.warmup_fraction: {low: 0, high: 0.1}\n"
        "  method.target_modules: [all-linear, [q_proj, v_proj]]\n"
    )
    assert file.dimensions == (
        Range("optimization.learning_rate", 1e-5, 1e-3, log=True),
        Choices("method.lora_rank", (8, 16)),
        Range("optimization.global_batch_size", 4, 17, step=4, is_integer=True),
        Range("optimization.warmup_fraction", 0.0, 0.1),
        Choices("method.target_modules", ("all-linear", ["q_proj", "v_proj"])),
    )
    assert isinstance(file.dimensions[3].low, float)
    assert file.dimensions[2].all_values() == [4, 8, 12, 16]
    assert file.dimensions[0].all_values() is None
    assert (file.metric.path, file.metric.higher_is_better) == (("loss",), False)
    assert file.tune.max_trials == 20
    assert file.tune.pruner == MedianPruner(kind="median")


def test_options_are_read(load):
    search = "search: {optimization.learning_rate: [1e-4, 2e-4]}\n"
    assert load(search + "pruner: none\n").tune.pruner == NoPruner(kind="none")
    halving = load(search + "pruner: {kind: successive_halving, factor: 3}\nobjective: token_accuracy\n")
    assert halving.tune.pruner == SuccessiveHalving(kind="successive_halving", factor=3)
    assert halving.metric.higher_is_better
    assert load(search + "objective: f1_macro\n", CLASSIFICATION).metric.path == (
        "classification",
        "metrics",
        "f1_macro",
    )


def test_learning_rates_in_the_notation_of_other_tools_are_numbers(load):
    """YAML 1.1 reads 1e-4 as a string."""
    (dimension,) = load("search: {optimization.learning_rate: [1e-4, 2e-4]}").dimensions
    assert dimension.all_values() == (1e-4, 2e-4)


def test_every_combination_in_order():
    space = [Choices("a", (1, 2)), Range("b", 0.0, 0.2, step=0.1)]
    assert [tuple(each.values()) for each in grid(space, 6) or ()] == [
        *((1, 0.0), (1, 0.1), (1, 0.2)),
        *((2, 0.0), (2, 0.1), (2, 0.2)),
    ]
    assert grid(space, 5) is None
    assert grid([Range("b", 0.0, 0.2)], 100) is None


RATE = "search:\n  optimization.learning_rate: [1e-4]\n"
PROBLEMS = {
    "unknown key": ("search:\n  optimization.learnin_rate: [1]\n", 2, "did you mean `optimization.learning_rate`"),
    "without its section": ("search:\n  learning_rate: [1e-4]\n", 2, "did you mean `optimization.learning_rate`"),
    "key of another kind": ("search:\n  method.num_layers: [1, 2]\n", 2, "belongs to another method.kind"),
    "section": ("search:\n  optimization: [1]\n", 2, "is a section"),
    "no values": ("search:\n  method.lora_rank: []\n", 2, "has no values"),
    "twice": ("search:\n  method.lora_rank:\n  - 8\n  - 8\n", 4, "lists 8 twice"),
    "scalar": ("search:\n  method.lora_rank: 8\n", 2, "takes a list of values or a range"),
    "value of the wrong type": ("search:\n  method.lora_rank:\n  - 8\n  - many\n", 4, "takes an integer"),
    "value out of range": ("search:\n  optimization.warmup_fraction: [0.1, 1.5]\n", 2, "given: 1.5"),
    "end out of range": (
        "search:\n  method.lora_dropout:\n    low: 0\n    high: 2\n",
        4,
        "`method.lora_dropout` takes a number",
    ),
    "low above high": (
        "search:\n  optimization.learning_rate:\n    low: 1e-3\n    high: 1e-5\n",
        3,
        "the range of .* is empty",
    ),
    "low equals high": ("search:\n  method.lora_rank: {low: 8, high: 8}\n", 2, "is empty"),
    "log from zero": ("search:\n  optimization.learning_rate: {low: 0, high: 1, log: true}\n", 2, "starts above 0"),
    "step and log": ("search:\n  method.lora_rank: {low: 1, high: 9, step: 2, log: true}\n", 2, "either `step` or"),
    "step too large": ("search:\n  method.lora_rank: {low: 1, high: 9, step: 20}\n", 2, "`step` must be above 0"),
    "misspelled end": ("search:\n  method.lora_rank: {low: 1, hihg: 9}\n", 2, "did you mean `high`"),
    "no end": ("search:\n  method.lora_rank: {low: 1}\n", 2, "has no `high`"),
    "fraction of an integer": ("search:\n  method.lora_rank: {low: 1.5, high: 4}\n", 2, "takes an integer"),
    "range of words": ("search:\n  optimization.schedule: {low: 1, high: 2}\n", 2, "list the values"),
    "validation rows vary": ("search:\n  data.validation: [0.1, 0.2]\n", 2, "cannot vary"),
    "seed varies": ("search:\n  seed: [1, 2]\n", 2, "cannot vary"),
    "loss varies": ("search:\n  preference.beta: [0.1, 0.2]\n", 2, "objective: token_accuracy", PREFERENCE),
    "unknown option": (RATE + "max_trails: 3\n", 3, "did you mean `max_trials`"),
    "option of the wrong type": (RATE + "max_trials: 0\n", 3, "takes an integer, 1 or more; given: 0"),
    "unknown sampler": (RATE + "sampler: bayes\n", 3, "one of auto, tpe, random, grid"),
    "unknown pruner": (RATE + "pruner: hyperband\n", 3, "one of median, successive_halving, none"),
    "unknown option of a pruner": (RATE + "pruner:\n  kind: median\n  min_trails: 2\n", 5, "did you mean `min_trials`"),
    "unknown metric": (RATE + "objective: losss\n", 3, "did you mean `loss`"),
    "metric of another task": (RATE + "objective: f1_macro\n", 3, "the task chat has no metric"),
    "endless grid": ("search:\n  optimization.learning_rate: {low: 0, high: 1}\nsampler: grid\n", 2, "add `step`"),
    "steps twice": ("search:\n  optimization.max_steps: [5, 9]\nsteps_per_trial: 5\n", 3, "which varies"),
    "pruner without evaluations": (
        RATE + "pruner: median\n",
        3,
        "evaluation.every_steps",
        RECIPE.replace("every_steps: 5", "num_answers: 1"),
    ),
    "not YAML": ("search:\n  a: [1\n", 2, "not valid YAML"),
    "duplicate key": (RATE + "  optimization.learning_rate: [2e-4]\n", 3, "duplicate key"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_names_the_line(load, name):
    text, line, words, *recipe = PROBLEMS[name]
    with pytest.raises(InputError, match=words) as caught:
        load(text, *recipe)
    assert f"tune.yaml:{line}" in str(caught.value)
    assert caught.value.remedy


def test_all_problems_are_listed_together(load):
    with pytest.raises(InputError, match="the tune file has 3 problems") as caught:
        load("search:\n  optimization.x: [1]\n  method.lora_rank: []\nmax_trials: no\n")
    assert all(f"tune.yaml:{line}: " in str(caught.value) for line in (2, 3, 4))


def test_a_recipe_without_validation_rows_is_rejected(load):
    with pytest.raises(InputError, match="no validation rows"):
        load(RATE, RECIPE.replace(", validation: 0.1", ""))


@pytest.mark.parametrize("text", ["", "search:\n", "search: {}\n", "- a\n", "max_trials: 3\n"])
def test_a_file_without_search_space_is_rejected(load, text):
    with pytest.raises(InputError, match="search") as caught:
        load(text)
    assert "tune.yaml" in str(caught.value)


def test_the_accuracy_stays_comparable_where_the_loss_does_not(load):
    file = load("search: {preference.beta: [0.1, 0.2]}\nobjective: token_accuracy\n", PREFERENCE)
    assert file.dimensions == (Choices("preference.beta", (0.1, 0.2)),)


def test_overrides_count(load):
    """A key of the kind of method that the command line selects."""
    file = load("search: {method.num_layers: [1, 2]}", RECIPE, "method.kind=last_layers")
    assert file.dimensions == (Choices("method.num_layers", (1, 2)),)


def test_a_missing_file_names_the_option(tmp_path):
    with pytest.raises(InputError, match="--space"):
        load_tune(Path(tmp_path / "tune.yaml"), RECIPE, "recipe.yaml")

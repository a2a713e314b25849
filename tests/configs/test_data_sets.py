"""data.train as a mixture of data sets: forms, defaults and errors."""

import pytest

from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.data import Data, TrainingSet
from tunesmith.errors import InputError

HEAD = "name: t\nmodel: {base: m}\nmethod: {kind: full}\n"


def data_of(text: str) -> Data:
    return load_recipe_text(f"{HEAD}data: {text}\n").data


def test_plain_paths_are_no_mixture_and_stay_as_written():
    data = data_of("{train: [a.jsonl, b/*.jsonl], validation: [v.jsonl]}")
    assert data.train == ["a.jsonl", "b/*.jsonl"]
    assert (data.training_sets, data.validation_sets) == ([], [])
    assert (data.training_paths, data.validation_paths) == (["a.jsonl", "b/*.jsonl"], ["v.jsonl"])
    assert data.model_dump(mode="json")["train"] == ["a.jsonl", "b/*.jsonl"]


def test_one_section_makes_every_entry_a_data_set():
    data = data_of("{train: [x/a.jsonl.gz, {path: [b.jsonl, c.jsonl], name: general}], validation: [{path: v.csv}]}")
    assert [(each.label, each.path) for each in data.training_sets] == [
        ("a", ["x/a.jsonl.gz"]),
        ("general", ["b.jsonl", "c.jsonl"]),
    ]
    assert data.training_paths == ["x/a.jsonl.gz", "b.jsonl", "c.jsonl"]
    assert [each.label for each in data.validation_sets] == ["v"]


def test_a_recipe_with_data_sets_survives_the_plan():
    recipe = load_recipe_text(
        f"{HEAD}data: {{train: [{{path: a.jsonl, weight: 2, columns: {{prompt: q}}}}, b.jsonl]}}",
        "r",
        ["data.train=[{path: a.jsonl, weight: 2, columns: {prompt: q}}]"],
    )
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("a.jsonl", "a"),
        ("data/support-2024.jsonl.gz", "support-2024"),
        ("hf://datasets/org/name", "name"),
        ("rows/", "rows"),
        ("chats of may.jsonl", "chats-of-may"),
        ("x-*.jsonl", "x"),
    ],
)
def test_a_data_set_is_named_after_its_file(path, label):
    assert TrainingSet(path=[path]).label == label


@pytest.mark.parametrize(
    ("data", "what", "remedy"),
    [
        ("{train: [{path: a.jsonl, weight: -1}]}", "`data.train[0].weight` takes a number, 0 or more", "share"),
        ("{train: [{path: a.jsonl, weight: .nan}]}", "`data.train[0].weight` takes a number, 0 or more", "share"),
        ("{train: [{path: a.jsonl, weight: 0}, {path: b.jsonl, weight: 0}]}", "all data sets are 0", "positive"),
        ("{train: [{path: a.jsonl, weight: 1}, b.jsonl]}", "'b' has no weight", "give all data sets a `weight`"),
        ("{train: [{path: a.jsonl}, x/a.csv]}", "two data sets have the name 'a'", "another `name`"),
        ("{train: [{path: '*.jsonl'}]}", "no name can be derived from '*.jsonl'", "give this data set a `name`"),
        ("{train: [{path: a.jsonl, name: a b}]}", "letters, digits, dot, dash and underscore", "Name in the plan"),
        ("{train: [{path: a.jsonl, wieght: 1}]}", "unknown key `data.train[0].wieght`", "data.train[0].weight"),
        ("{train: [{weight: 1}]}", "`data.train[0].path` is missing", "add it"),
        ("{train: [{path: []}]}", "`data.train[0].path` takes a list of strings, at least 1", "path"),
        ("{train: [{path: a.jsonl, max_rows: 0}]}", "`data.train[0].max_rows` takes an integer, 1 or more", "rows"),
        ("{train: [{path: a.jsonl, weight: 1}], mixing: {temperature: 2}}", "contradict each other", "remove one"),
        ("{train: [a.jsonl], mixing: {temperature: 2}}", "applies to data sets", "`{path: ...}`"),
        ("{train: [{path: a.jsonl}], mixing: {temperature: 0}}", "takes a number, above 0", "T of the shares"),
        ("{train: [{path: a.jsonl}], mixing: {epoch_samples: longest}}", "one of total, first_exhausted", "epoch"),
        ("{train: [a.jsonl], validation: [{path: v.jsonl}, x/v.csv]}", "two data sets have the name 'v'", "name"),
    ],
)
def test_a_mistake_is_reported_with_what_to_write_instead(data, what, remedy):
    with pytest.raises(InputError) as caught:
        data_of(data)
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    assert str(caught.value.where).startswith("recipe.yaml:4")

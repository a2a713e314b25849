"""Rows with other names (data.columns) equal rows with the names of the formats, for every task."""

import csv
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.data import Columns
from tunesmith.configs.tasks import TASKS
from tunesmith.data.check import check_recipe
from tunesmith.data.encoders.by_task import encoder_from, make_encoder, portable
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.shapes.columns import COLUMNS_OF_TASK, renamed
from tunesmith.errors import InputError

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ROWS = {
    "chat": [
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "input": "i", "output": "a", "system": "s"},
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "t"}}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ],
    "completion": [{"prompt": "q", "completion": "a"}],
    "text": [{"text": "some words"}],
    "classification": [{"text": "x", "label": "b"}, {"text": "x", "text_pair": "y", "label": "b"}],
    "seq2seq": [{"source": "q", "target": "a"}],
    "preference": [{"prompt": "q", "chosen": "a", "rejected": "b"}],
    "kto": [{"prompt": "q", "completion": "a", "label": True}, {"messages": MESSAGES, "label": 0}],
}


def recipe_of(task, columns, **more):
    return Recipe(
        name="t",
        model={"base": "m"},
        task=task,
        method={"kind": "full"},
        data={"train": ["rows.jsonl"], "columns": columns, "omitted_fields": "keep"},
        **more,
    )


def encoder_of(tokenizer, task, columns):
    return make_encoder(tokenizer, EncodingSpec.of(recipe_of(task, columns), ["a", "b"]))


@pytest.mark.parametrize("task", ROWS)
def test_mapped_rows_equal_rows_with_the_names_of_the_formats(tiny, task):
    assert ROWS.keys() == COLUMNS_OF_TASK.keys() == TASKS.keys()
    for row in ROWS[task]:
        columns = {key: f"my {key}" for key in row}
        mapped = {f"my {key}": item for key, item in row.items()} | {"id": 7, "text": "other", "prompt": "other"}
        (plain,) = encoder_of(tiny, task, None).encode([row])
        (read,) = encoder_of(tiny, task, columns).encode([mapped])
        assert read.outcome == plain.outcome == "kept", (row, read.reason, plain.reason)
        assert (read.documents, read.key) == (plain.documents, plain.key)


def test_the_mapping_is_part_of_the_cache_key_and_of_other_processes(tiny):
    plain, mapped = encoder_of(tiny, "chat", None), encoder_of(tiny, "chat", {"prompt": "q", "completion": "a"})
    assert plain.spec.as_json() == encoder_of(tiny, "chat", {}).spec.as_json() != mapped.spec.as_json()
    copy = encoder_from(portable(mapped))
    assert copy.encode([{"q": "x", "a": "y"}])[0].documents == mapped.encode([{"q": "x", "a": "y"}])[0].documents != []


@given(st.dictionaries(st.sampled_from(sorted(Columns.model_fields)), st.integers(), min_size=1), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_renaming_is_the_inverse_of_writing_other_names(row, extra):
    columns = {key: f"column {key}" for key in row}
    more = {f"extra {number}": number for number in range(extra)}
    assert renamed({columns[key]: item for key, item in row.items()} | more, columns) == row | more


def test_cells_of_mapped_columns_are_parsed_as_json(tmp_path, tiny):
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([["dialog"], [json.dumps(MESSAGES)], ["[broken"]])
    data = {"train": ["rows.csv"], "columns": {"messages": "dialog"}, "max_rejects": 1}
    recipe = Recipe(name="t", model={"base": "m"}, method={"kind": "full"}, data=data)
    summary = check_recipe(recipe, tiny, recipe_dir=tmp_path, cache=tmp_path / "cache")
    assert summary.outcomes["kept"] == 1
    assert 'the column "dialog" is not valid JSON' in summary.rejects[0].reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q"}, r'no "answer" \(data.columns.completion\)'),
        ({"question": "q", "anwser": "a"}, r'no "answer" \(data.columns.completion\); did you mean "anwser"'),
        ({"question": "q", "answer": "a", "sytem prompt": "s"}, r'no "system prompt" .*did you mean "sytem prompt"'),
    ],
)
def test_a_row_without_a_mapped_column_is_rejected_by_name(row, reason):
    refusal = renamed(row, {"prompt": "question", "completion": "answer", "system": "system prompt"})
    assert isinstance(refusal, Refusal)
    assert re.search(reason, refusal.reason), refusal.reason
    assert '"question"' in refusal.remedy


@pytest.mark.parametrize(
    ("task", "columns", "more", "where", "what"),
    [
        ("chat", {"label": "l", "prompt": "q"}, {}, "data.columns.label", "rows of the task chat have no label"),
        ("chat", {"prompt": "q", "completion": "q"}, {}, "data.columns.prompt", "two meanings"),
        ("chat", {"prompt": "q", "completion": "a", "system": "sys"}, {}, "data.columns.system", 'the column "sys"'),
        ("chat", {"prompt": "Q", "completion": "a"}, {}, "data.columns.prompt, rows.jsonl", 'the column "Q"'),
        (
            "classification",
            {"text": "q"},
            {"classification": {"text_column": "body"}},
            "data.columns.text",
            "classification.text_column and data.columns.text",
        ),
    ],
)
def test_columns_that_are_not_there_or_have_no_meaning_are_errors(
    tmp_path, tiny, write_jsonl, task, columns, more, where, what
):
    write_jsonl("rows.jsonl", [{"q": "x", "a": "y"}] * 3)
    with pytest.raises(InputError, match=what) as caught:
        check_recipe(recipe_of(task, columns, **more), tiny, recipe_dir=tmp_path, cache=tmp_path / "cache")
    assert where in str(caught.value.where)


def test_labels_are_collected_from_the_mapped_column(tmp_path, tiny, write_jsonl):
    write_jsonl("rows.jsonl", [{"review": "x y", "stars": 5}, {"review": "y z", "stars": 1}])
    recipe = recipe_of("classification", {"text": "review", "label": "stars"})
    summary = check_recipe(recipe, tiny, recipe_dir=tmp_path, cache=tmp_path / "cache")
    assert summary.outcomes["kept"] == 2


def test_deidentified_rows_do_not_show_their_keys(tmp_path, tiny, write_jsonl):
    write_jsonl("rows.jsonl", [{"q": "x", "a": "y", "Anna Kowalska": 1}, {"q": "x", "a": "", "Anna Kowalska": 1}])
    data = {"train": ["rows.jsonl"], "columns": {"prompt": "q", "completion": "a"}, "deidentify": {}}
    recipe = Recipe(name="t", model={"base": "m"}, method={"kind": "full"}, data=data)
    summary = check_recipe(recipe, tiny, recipe_dir=tmp_path, cache=tmp_path / "cache")
    assert summary.num_rejected == 1
    assert "Kowalska" not in summary.rejects[0].reason + summary.rejects[0].remedy

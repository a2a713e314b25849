import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.configs.recipe import Recipe
from tunesmith.data.check import check_files, check_recipe
from tunesmith.errors import InputError


def test_check_of_a_bare_file_needs_no_model(write_jsonl, chat_rows):
    path = write_jsonl("a.jsonl", [*chat_rows, chat_rows[0], "{", {"messages": []}])
    summary = check_files([str(path)], limit=1)
    assert (summary.task, summary.unit, summary.rows) == ("chat", "characters", 63)
    assert summary.outcomes == {"kept": 61, "rejected": 2}
    assert [(reject.line, reject.code, bool(reject.remedy)) for reject in summary.rejects] == [
        (62, "invalid_json", True)
    ]
    assert (summary.num_rejected, summary.duplicates) == (2, 1)
    assert summary.example == chat_rows[0]
    longest = max(sum(len(m["content"]) for m in row["messages"]) for row in chat_rows)
    assert summary.length_percentiles["max"] == longest


@pytest.mark.parametrize(
    ("row", "task"), [({"prompt": "a", "completion": "b"}, "completion"), ({"text": "a"}, "text"), ({"x": 1}, "chat")]
)
def test_the_task_of_a_bare_file_is_inferred_from_its_rows(write_jsonl, row, task):
    summary = check_files([str(write_jsonl("a.jsonl", [row]))])
    assert summary.task == task
    assert summary.num_rejected == (1 if "x" in row else 0)


def test_check_of_a_recipe_reads_rows_as_in_training(tmp_path, tiny, write_jsonl, chat_rows):
    write_jsonl("a.jsonl", [*chat_rows, "{", chat_rows[0]])
    data = {"train": ["a.jsonl"], "max_seq_len": 128, "too_long": "truncate", "validation": 0.1}
    recipe = Recipe(name="t", model={"base": "m"}, method={"kind": "full"}, data=data)
    summary = check_recipe(recipe, tiny, recipe_dir=tmp_path, cache=tmp_path / "cache")
    assert summary.rows == 62 == sum(summary.outcomes.values())
    assert summary.outcomes["rejected"] == 1
    assert summary.outcomes["truncated"] > 0
    assert summary.rejects[0].line == 61
    assert (summary.duplicates, summary.unit, summary.length_percentiles["max"]) == (1, "tokens", 128)
    assert summary.splits["validation"]["trained_rows"] == 6
    assert 0 < summary.supervised_tokens < summary.total


def test_a_validation_row_equal_to_a_training_row_is_rejected_with_its_code(tmp_path, tiny, write_jsonl, chat_rows):
    write_jsonl("train.jsonl", chat_rows)
    write_jsonl("validation.jsonl", [chat_rows[3], {"messages": []}, {"messages": chat_rows[0]["messages"][::-1]}])
    data = {"train": ["train.jsonl"], "max_seq_len": 256, "validation": ["validation.jsonl"]}
    recipe = Recipe(name="t", model={"base": "m"}, method={"kind": "full"}, data=data)
    rejects = check_recipe(recipe, tiny, recipe_dir=tmp_path, cache=tmp_path / "cache").rejects
    assert (rejects[0].code, rejects[0].line) == ("equals_training_row", 1)
    assert "train.jsonl:4" in rejects[0].reason
    assert [reject.code for reject in rejects[1:]] == [None]  # the cache does not store codes


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no data found"):
        check_files(["nothing.jsonl"], recipe_dir=tmp_path)


WORDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=9, max_size=14)


@given(st.sets(WORDS, min_size=1, max_size=4))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_keys_that_are_not_read_are_named(write_jsonl, keys):
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    more = dict.fromkeys(sorted(keys), "x")
    for row in ({"conversations": turns}, {"prompt": "q", "completion": "a"}, {"text": "t"}):
        path = str(write_jsonl("a.jsonl", [row | more]))
        summary = check_files([path])
        if summary.num_rejected:  # similar to a known key
            assert summary.rejects[0].code == "unknown_key"
        assert summary.ignored_keys == sorted(keys)
        assert check_files([path], limit=1).as_json()["ignored_keys"] == sorted(keys)


@pytest.mark.parametrize(
    ("task", "row", "more"),
    [
        ("classification", {"sentence1": "a", "sentence2": "b", "label": "x"}, {"idx": 3, "text_pair": None}),
        ("seq2seq", {"source": "a", "target": "b"}, {"id": 1}),
        ("preference", {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, {"score": 1}),
        ("kto", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, {"id": 1}),
        ("chat", {"question": "q", "answer": "a", "system": "s"}, {"context": "c", "prompt": "p"}),
    ],
)
def test_keys_that_a_task_does_not_read_are_named(tmp_path, tiny, write_jsonl, task, row, more):
    rows = [row | more | {"label": label} if task == "kto" else row | more for label in (True, False)]
    if task == "classification":
        rows[1] = rows[1] | {"label": "y"}
    write_jsonl("a.jsonl", rows)
    data = {"train": ["a.jsonl"]}
    if task == "chat":
        data["columns"] = {"prompt": "question", "completion": "answer"}
    recipe = Recipe(name="t", model={"base": "m"}, task=task, method={"kind": "full"}, data=data)
    summary = check_recipe(recipe, tiny, recipe_dir=tmp_path, cache=tmp_path / "cache")
    assert summary.num_rejected == 0, summary.rejects
    assert summary.ignored_keys == list(more)
    withheld = Recipe(**{**recipe.model_dump(), "data": {**data, "deidentify": {}}})
    assert check_recipe(withheld, tiny, recipe_dir=tmp_path, cache=tmp_path / "cache").ignored_keys == []

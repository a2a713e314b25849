"""Preparing a mixture: every sample belongs to one data set, and receipts, summary and plan say to which."""

import json
from pathlib import Path

import pytest

from tunesmith.configs.plan import DataFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.data.check import check_recipe
from tunesmith.data.encoders.by_task import encoder_from, portable
from tunesmith.data.index.prepare import prepare, recipe_encoders, recipe_sources
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.show import show
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError
from tunesmith.rundir.paths import RunDir


def chat(number: int, text: str = "answer") -> dict:
    return {
        "messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"{text} {number}"}]
    }


@pytest.fixture
def recipe(tmp_path, write_jsonl):
    """recipe(*entries of data.train, **data options) -> Recipe. Files a.jsonl: 40 rows, b.jsonl: 24 other rows."""
    write_jsonl("a.jsonl", [chat(number) for number in range(40)])
    write_jsonl("b.jsonl", [chat(number, "another longer answer") for number in range(24)])

    def made(*entries, **data) -> Recipe:
        data = {"train": list(entries), "max_seq_len": 96, **data}
        return Recipe.model_validate(
            {"name": "t", "model": {"base": "m"}, "method": {"kind": "full"}, "data": data, "seed": 7}
        )

    return made


@pytest.fixture
def prepared(tmp_path, tiny):
    """prepared(recipe) -> (DataFacts, receipts of all rows)."""

    def run(recipe: Recipe) -> tuple[DataFacts, list[dict]]:
        run = RunDir(tmp_path / "run")
        facts = prepare(recipe, tiny, recipe_dir=tmp_path, cache=tmp_path / "cache", run=run)
        names = [run.receipts / f"{split}.jsonl" for split in ("train", "validation")]
        lines = [line for path in names if path.is_file() for line in path.read_text().splitlines()]
        return facts, sorted(map(json.loads, lines), key=lambda line: line["row"])

    return run


A, B = {"path": "a.jsonl", "weight": 3}, {"path": "b.jsonl", "weight": 1}


@pytest.mark.parametrize("packing", [True, False])
def test_no_sample_has_rows_of_two_data_sets(recipe, prepared, packing):
    facts, receipts = prepared(recipe(A, B, packing=packing))
    dataset_of = {receipt["row"]: receipt["dataset"] for receipt in receipts}
    assert list(dataset_of.values()) == ["a"] * 40 + ["b"] * 24
    index = TokenIndex.open(Path(facts.train.index))
    assert sum(each.num_samples for each in facts.datasets) == index.num_samples
    for each in facts.datasets:
        samples = [index.sample(each.first_sample + n) for n in range(each.num_samples)]
        assert {dataset_of[row] for sample in samples for row in sample.rows} == {each.name}
        assert sum(len(sample.rows) for sample in samples) == each.num_rows
        assert sum(len(sample.tokens) for sample in samples) == each.num_tokens
        assert sum(int(sample.supervised.sum()) for sample in samples) == each.supervised_tokens
    assert index.num_samples == 64 or packing
    assert facts.epoch_samples == index.num_samples
    assert facts.samples_by_dataset([0, facts.datasets[1].first_sample]) == {"a": 1, "b": 1}


def test_weights_do_not_change_the_prepared_rows(recipe, prepared):
    first, _ = prepared(recipe(A, B))
    second, _ = prepared(recipe(A, {**B, "weight": 2}))
    assert first.fingerprint == second.fingerprint
    assert [each.samples_per_epoch for each in first.mixed] != [each.samples_per_epoch for each in second.mixed]
    renamed, _ = prepared(recipe(A, {**B, "name": "other"}))
    assert renamed.fingerprint != first.fingerprint


def test_plain_paths_have_no_data_sets(recipe, prepared):
    facts, receipts = prepared(recipe("a.jsonl", "b.jsonl"))
    assert (facts.datasets, facts.epoch_samples, facts.samples_by_dataset([0])) == ([], None, None)
    assert not any("dataset" in receipt for receipt in receipts)


def test_rows_are_held_out_of_each_data_set_and_equal_rows_are_in_one_split(recipe, prepared, write_jsonl):
    write_jsonl("b.jsonl", [chat(number) for number in range(30, 54)])  # ten rows equal to those of a
    facts, receipts = prepared(recipe(A, B, validation=0.25, packing=False))
    assert facts.validation is not None
    a, b = facts.datasets
    assert (a.num_rows + a.validation_rows, b.num_rows + b.validation_rows) == (40, 24)
    shared = sum(receipt["split"] == "validation" and "duplicate_of" in receipt for receipt in receipts)
    assert shared > 0
    # Of the 40 rows of a and their 10 equals in b, and of the 14 other rows of b.
    assert a.validation_rows + shared == round(0.25 * 50)
    assert b.validation_rows - shared == round(0.25 * 14)
    for receipt in receipts:
        if "duplicate_of" in receipt:
            assert receipt["split"] == receipts[receipt["duplicate_of"]]["split"]


def test_max_rows_selects_the_same_rows_wherever_they_are(recipe, prepared, write_jsonl):
    def used(receipts: list[dict]) -> set[int]:
        return {r["line"] for r in receipts if r["dataset"] == "a" and r["fate"] == "kept"}

    facts, receipts = prepared(recipe({**A, "max_rows": 12}, B))
    assert facts.datasets[0].num_rows == 12
    assert facts.num_unselected == 28
    assert [r["fate"] for r in receipts if r["dataset"] == "b"] == ["kept"] * 24
    lines = used(receipts)
    assert lines != set(range(1, 13))  # not simply the first ones
    more, receipts = prepared(recipe({**A, "max_rows": 13}, B))
    assert used(receipts) > lines
    assert more.fingerprint != facts.fingerprint
    write_jsonl("a.jsonl", [chat(39 - number) for number in range(40)])
    _, receipts = prepared(recipe({**A, "max_rows": 12}, B))
    assert used(receipts) == {41 - line for line in lines}


def test_a_data_set_has_its_own_columns_and_delimiter(recipe, prepared, tmp_path, tiny):
    (tmp_path / "faq.csv").write_text("question|answer\n" + "".join(f"q{n}|text {n}\n" for n in range(5)))
    faq = {"path": "faq.csv", "columns": {"prompt": "question", "completion": "answer"}, "csv_delimiter": "|"}
    held_out = {"path": "held.csv", "name": "faq"}  # with the columns of the training data set
    (tmp_path / "held.csv").write_text("question|answer\nq9|text 9\n")
    mixed = recipe({"path": "a.jsonl"}, faq, validation=[held_out, {"path": "b.jsonl", "name": "general"}])
    facts, _ = prepared(mixed)
    assert [(d.name, d.num_rows, d.validation_rows) for d in facts.datasets] == [
        ("a", 40, 0),
        ("faq", 5, 1),
        ("general", 0, 24),
    ]
    assert [d.name for d in facts.mixed] == ["a", "faq"]
    (row,) = show(mixed, tiny, recipe_dir=tmp_path, first=42, limit=1)
    assert (row.dataset, row.source, row.line, row.outcome) == ("faq", "faq.csv", 4, "kept")
    summary = check_recipe(mixed, tiny, recipe_dir=tmp_path, cache=tmp_path / "cache")
    assert [(d["name"], d["num_rows"], d["validation_rows"]) for d in summary.datasets] == [
        ("a", 40, 0),
        ("faq", 5, 1),
        ("general", 0, 24),
    ]


def test_a_data_set_has_its_own_template_variables(recipe, tmp_path, tiny_llama):
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + mode|default('') + '\\n' + m['content'] }}"
        "{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' + mode|default('') + '\\n' }}{% endif %}"
    )
    tokenizer = Tokenizer.load(tiny_llama, template, None, {"mode": " m"})
    mixed = recipe(A, {**B, "chat_template_kwargs": {"mode": " other"}}, validation=[{"path": "c.jsonl", "name": "b"}])
    (tmp_path / "c.jsonl").write_text(json.dumps(chat(99)) + "\n")
    facts = prepare(mixed, tokenizer, recipe_dir=tmp_path, cache=tmp_path / "cache")

    def text(split, sample: int) -> str:
        return tokenizer.decode(TokenIndex.open(Path(split.index)).sample(sample).tokens.tolist(), False)

    assert text(facts.train, 0).startswith("<|im_start|>user m\n")
    assert text(facts.train, facts.datasets[1].first_sample).startswith("<|im_start|>user other\n")
    assert text(facts.validation, 0).startswith("<|im_start|>user other\n")
    sources = recipe_sources(mixed, tmp_path)
    _, encoders = recipe_encoders(mixed, tokenizer, sources)
    for encoder in encoders.values():  # as in a worker process
        assert encoder_from(portable(encoder)).tokenizer.fingerprint == encoder.tokenizer.fingerprint
    unknown = recipe(A, {**B, "chat_template_kwargs": {"modus": 1}})
    with pytest.raises(InputError, match="modus") as caught:
        prepare(unknown, tokenizer, recipe_dir=tmp_path, cache=tmp_path / "cache")
    assert "the data set b" in str(caught.value.where)


def test_a_column_that_a_data_set_lacks_is_an_error_that_names_it(recipe, prepared):
    with pytest.raises(InputError, match='no row has the column "question"') as caught:
        prepared(recipe(A, {**B, "columns": {"prompt": "question", "completion": "answer"}}))
    assert "data set b" in str(caught.value.where)


def test_named_validation_files_need_no_mixture(recipe, prepared):
    facts, receipts = prepared(recipe("a.jsonl", validation=[{"path": "b.jsonl", "name": "general"}]))
    assert facts.epoch_samples is None
    assert [(each.name, each.validation_rows, each.row_ranges) for each in facts.datasets] == [
        ("general", 24, [(40, 64)])
    ]
    assert {receipt.get("dataset") for receipt in receipts} == {None, "general"}


def test_a_file_in_two_data_sets_is_an_error(recipe, prepared, tmp_path):
    with pytest.raises(InputError, match="the data sets a and c contain the same file") as caught:
        prepared(recipe(A, {"path": "a.jsonl", "name": "c", "weight": 1}))
    assert caught.value.where == str(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no data found for 'c.jsonl'"), ('{"messages": []}\n', "no row of the data set c can be used")],
)
def test_a_data_set_without_rows_is_an_error(recipe, prepared, tmp_path, content, message):
    if content is not None:
        (tmp_path / "c.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        prepared(recipe(A, B, {"path": "c.jsonl", "weight": 1}, max_rejects=1))

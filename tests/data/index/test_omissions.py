"""Rows that the chat template shows in part only: rejected by default, otherwise counted."""

import json

import pytest

from tests.data.tokenization.families import QWEN_3
from tunesmith.configs.recipe import Recipe
from tunesmith.data.check import check_recipe
from tunesmith.data.encoders.by_task import encoder_from, make_encoder, portable
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.prepare import prepare
from tunesmith.data.show import show
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError
from tunesmith.rundir.paths import RunDir

USER = {"role": "user", "content": "Hi"}
THINKING = {"role": "assistant", "reasoning_content": "two and two make four", "content": "4"}
PLAIN = {"messages": [USER, {"role": "assistant", "content": "Ahoy."}]}
EARLIER = {"messages": [USER, THINKING, USER, THINKING]}
DEVELOPER = {"messages": [{"role": "developer", "content": "Answer as a pirate."}, *PLAIN["messages"]]}


@pytest.fixture(scope="module")
def qwen(make_tokenizer_directory) -> Tokenizer:
    return Tokenizer.load(make_tokenizer_directory(QWEN_3))


@pytest.fixture
def recipe(write_jsonl):
    """recipe(rows, task=..., **data options) -> Recipe"""

    def make(rows, task="chat", **data) -> Recipe:
        data = {"train": [str(write_jsonl("rows.jsonl", rows))], "max_seq_len": 256, **data}
        return Recipe(name="t", model={"base": "m"}, task=task, method={"kind": "full"}, data=data)  # type: ignore[arg-type]

    return make


def receipts(run: RunDir, name: str) -> list[dict]:
    return [json.loads(line) for line in (run.receipts / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_row_that_the_template_shows_in_part_only_is_rejected_with_its_line(recipe, qwen, tmp_path):
    run = RunDir(tmp_path / "run")
    with pytest.raises(InputError) as raised:
        prepare(recipe([PLAIN, DEVELOPER]), qwen, recipe_dir=tmp_path, run=run)
    assert "rows.jsonl:2: the chat template" in str(raised.value)
    assert "omits messages[0].content (developer)" in str(raised.value)
    assert "data.omitted_fields: keep" in str(raised.value)
    (reject,) = receipts(run, "rejects")
    assert (reject["row"], reject["line"]) == (1, 2)


def test_kept_rows_are_counted_by_what_is_omitted(recipe, qwen, tmp_path):
    run, kept = RunDir(tmp_path / "run"), recipe([PLAIN, DEVELOPER, EARLIER], omitted_fields="keep")
    facts = prepare(kept, qwen, recipe_dir=tmp_path, run=run)
    assert facts.omitted == {"developer messages": 1, "thinking": 1}
    assert json.loads((run.receipts / "summary.json").read_text())["omitted"] == facts.omitted
    outcomes = [(receipt["fate"], receipt["reason"]) for receipt in receipts(run, "train")]
    assert [outcome for outcome, _ in outcomes] == ["kept"] * 3
    assert outcomes[0][1] is None
    assert "omits messages[0].content (developer)" in outcomes[1][1]
    assert check_recipe(kept, qwen, recipe_dir=tmp_path).omitted == facts.omitted


def test_thinking_of_earlier_turns_is_counted_by_default(recipe, qwen, tmp_path):
    facts = prepare(recipe([PLAIN, EARLIER, EARLIER]), qwen, recipe_dir=tmp_path)
    assert facts.omitted == {"thinking": 2}
    dropped = prepare(recipe([PLAIN, EARLIER, EARLIER], duplicates="drop"), qwen, recipe_dir=tmp_path)
    assert dropped.omitted == {"thinking": 1}
    assert prepare(recipe([PLAIN]), qwen, recipe_dir=tmp_path).omitted == {}


def test_another_process_checks_in_the_same_way(qwen):
    spec = EncodingSpec("chat", 64, omitted_fields="keep")
    assert encoder_from(portable(make_encoder(qwen, spec))).spec == spec


def pair(chosen: dict, rejected: dict) -> dict:
    return {"prompt": [USER], "chosen": [chosen], "rejected": [rejected]}


def test_preference_and_kto_rows_are_checked(qwen):
    plain = {"role": "assistant", "content": "4"}
    encode = make_encoder(qwen, EncodingSpec("preference", 256)).encode
    named = {**plain, "refusal": "I cannot"}
    lost, good = encode([pair(named, plain), pair(THINKING, plain)])
    assert (lost.outcome, lost.code) == ("rejected", "omitted_field")
    assert "the chosen answer: " in lost.reason
    assert "messages[1].refusal (assistant)" in lost.reason
    assert good.outcome == "kept"
    (rated,) = make_encoder(qwen, EncodingSpec("kto", 256)).encode([{**DEVELOPER, "label": True}])
    assert rated.code == "omitted_field"


def test_a_pair_that_becomes_the_same_tokens_is_rejected(qwen):
    plain = {"role": "assistant", "content": "4"}
    encode = make_encoder(qwen, EncodingSpec("preference", 256, omitted_fields="keep")).encode
    for better in ({**plain, "refusal": "I cannot"}, {**plain, "content": "\n\n4"}):
        (result,) = encode([pair(better, plain)])
        assert (result.outcome, result.code) == ("rejected", "equal_answers")
        assert "become the same tokens" in result.reason
    (cut,) = make_encoder(qwen, EncodingSpec("preference", 64, "truncate")).encode(
        [pair({**plain, "content": "four " * 60 + "five"}, {**plain, "content": "four " * 60 + "six"})]
    )
    assert cut.code == "equal_answers"


def test_a_split_row_has_one_receipt_with_the_tokens_of_its_parts(recipe, qwen, tmp_path):
    run, split = RunDir(tmp_path / "run"), recipe([PLAIN, EARLIER], earlier_thinking="split", packing=False)
    facts = prepare(split, qwen, recipe_dir=tmp_path, run=run)
    assert (facts.train.num_rows, facts.train.num_samples, facts.omitted) == (2, 3, {})
    rows = receipts(run, "train")
    assert [receipt["fate"] for receipt in rows] == ["kept", "kept"]
    assert sum(receipt["tokens"] for receipt in rows) == facts.train.num_tokens
    assert sum(receipt["supervised_tokens"] for receipt in rows) == facts.train.supervised_tokens
    both = prepare(recipe([PLAIN, EARLIER], packing=False), qwen, recipe_dir=tmp_path)
    assert (both.train.num_samples, both.omitted) == (2, {"thinking": 1})
    assert both.train.supervised_tokens < facts.train.supervised_tokens


def test_what_the_template_inserts_is_counted_and_shown(recipe, qwen, tmp_path):
    block = "<think>\n\n</think>\n\n"
    run, rows = RunDir(tmp_path / "run"), recipe([PLAIN, EARLIER])
    prepare(rows, qwen, recipe_dir=tmp_path, run=run)
    assert json.loads((run.receipts / "summary.json").read_text())["inserted"] == {block: 1}
    assert check_recipe(rows, qwen, recipe_dir=tmp_path).inserted == {block: 1}
    assert [row.inserted for row in show(rows, qwen, recipe_dir=tmp_path)] == [[block], []]

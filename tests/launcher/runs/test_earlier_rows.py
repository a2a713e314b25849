"""A run that an earlier version started continues with the rows that were prepared for it."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.configs.plan import DataFacts, Plan
from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.build import build, data_facts, read_sources
from tunesmith.data.index.prepare import shape_of
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.launcher.backends.local import Local
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.runs.start import _rows_again


def rows_file(path, answer: str, question: str = "<|im_end|>?"):
    row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    path.write_text(json.dumps(row) + "\n")


@pytest.fixture
def plan_of(a_recipe, a_model, tiny_llama, tmp_path, monkeypatch):
    """plan_of(answer, question) -> plan of a run that version 0.2 has prepared."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tunesmith.data.tokenization.agreement._versions", lambda: None)  # comparing takes seconds

    def make(*texts: str) -> Plan:
        rows_file(tmp_path / "support.jsonl", *texts)
        recipe = a_recipe("data.max_seq_len=128", "data.validation=0")
        sources = read_sources(recipe.data.train, recipe.data.validation, tmp_path)
        # As version 0.2 encoded them, whose keys test_spec.py has recorded.
        spec = replace(EncodingSpec.of(recipe), revision=1, split_special_tokens=False)
        facts = data_facts(build(sources, make_encoder(Tokenizer.load(tiny_llama), spec), shape_of(recipe), 0))
        model = a_model(directory=str(tiny_llama))
        return make_plan(recipe, model, facts, Hardware(2, "", 64 << 30, "", frozenset()))

    return make


def rows_again(plan: Plan, tmp_path) -> tuple[DataFacts, str]:
    """The rows of a run that is resumed, and what is printed."""
    output = io.StringIO()
    return _rows_again(plan, plan.model, tmp_path, Progress(output), Local()), output.getvalue()


@pytest.mark.parametrize("answer", ["Yes.", "It is <|im_end|>."])
def test_the_rows_of_an_earlier_version_are_used_until_they_change(plan_of, tmp_path, answer):
    plan = plan_of(answer)
    data, printed = rows_again(plan, tmp_path)
    assert data == plan.data
    assert "an earlier version prepared the rows" in printed
    rows_file(tmp_path / "support.jsonl", "No.")
    assert rows_again(plan, tmp_path)[0].fingerprint != plan.data.fingerprint


@pytest.mark.parametrize(("question", "continues"), [("Really?", True), ("<|im_end|>?", False)])
def test_rows_of_an_earlier_version_that_are_gone_are_prepared_again(plan_of, tmp_path, question, continues):
    """Unless they have special tokens in their content, which have other tokens now."""
    plan = plan_of("Yes.", question)
    shutil.rmtree(tmp_path / "cache")
    data, printed = rows_again(plan, tmp_path)
    assert (data.fingerprint == plan.data.fingerprint) is continues
    assert ("they are prepared again, with as many tokens in each split" in printed) is continues
    if continues:
        assert data.train.index != plan.data.train.index
        assert TokenIndex.open(Path(data.train.index)).num_tokens == plan.data.train.num_tokens
        resumed = plan.model_copy(update={"data": data})
        assert rows_again(resumed, tmp_path)[0] == data
        rows_file(tmp_path / "support.jsonl", "Yes indeed.", question)
        assert rows_again(plan, tmp_path)[0].fingerprint != plan.data.fingerprint

"""A run that an earlier version started continues with the rows that were prepared for it."""

import io
import json
from dataclasses import replace

import pytest

from tunesmith.data.encoders.by_task import make_encoder
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.build import build, data_facts, read_sources
from tunesmith.data.index.prepare import shape_of
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.launcher.backends.local import Local
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.runs.start import _rows_again


def rows_file(path, answer: str):
    row = {"messages": [{"role": "user", "content": "<|im_end|>?"}, {"role": "assistant", "content": answer}]}
    path.write_text(json.dumps(row) + "\n")


@pytest.mark.parametrize("answer", ["Yes.", "It is <|im_end|>."])
def test_the_rows_of_an_earlier_version_are_used_until_they_change(
    a_recipe, a_model, tiny_llama, tmp_path, monkeypatch, answer
):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    rows_file(tmp_path / "support.jsonl", answer)
    recipe = a_recipe("data.max_seq_len=128", "data.validation=0")
    sources = read_sources(recipe.data.train, recipe.data.validation, tmp_path)
    # As version 0.2 encoded them, whose keys test_spec.py has recorded.
    spec = replace(EncodingSpec.of(recipe), revision=1, split_special_tokens=False)
    facts = data_facts(build(sources, make_encoder(Tokenizer.load(tiny_llama), spec), shape_of(recipe), 0))
    model = a_model(directory=str(tiny_llama))
    plan = make_plan(recipe, model, facts, Hardware(2, "", 64 << 30, "", frozenset()))
    output = io.StringIO()
    assert _rows_again(plan, model, tmp_path, Progress(output), Local()) == plan.data
    assert "an earlier version prepared the rows" in output.getvalue()
    rows_file(tmp_path / "support.jsonl", "No.")
    assert _rows_again(plan, model, tmp_path, Progress(io.StringIO()), Local()).fingerprint != plan.data.fingerprint

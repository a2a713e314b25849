"""A model is published only if serving renders the same tokens as training: a different template is rejected."""

import json
import shutil
from dataclasses import replace

import pytest

from tunesmith.inference.types import Target
from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.hyperparameters import resolve
from tunesmith.serving.jobs.parity import NUM_ROWS, require_parity
from tunesmith.serving.jobs.recipe import TrainingRequest, recipe_of


def a_recipe(base, path, kind, method="supervised", splits=True):
    numbers = resolve(method, {}, 60)
    request = TrainingRequest("ftjob-parity", base, None, method, kind, numbers, 1, 60, path, None, 2048)
    return recipe_of(replace(request, split_special_tokens=splits))


@pytest.fixture
def other_template(tiny_llama, tmp_path):
    """The same model with a template that starts with a greeting."""
    directory = tmp_path / "other"
    shutil.copytree(tiny_llama, directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["chat_template"] = "Hello!" + config["chat_template"]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_every_format_passes_with_the_same_template(tiny_llama, write_jsonl, chat_rows):
    turns = [{"messages": [*row["messages"], *row["messages"]]} for row in chat_rows]
    assert require_parity(a_recipe(tiny_llama, write_jsonl("a.jsonl", turns), "chat"), Target(tiny_llama)) == NUM_ROWS
    pairs = [
        {
            "input": {"messages": [*row["messages"], row["messages"][0]]},
            "preferred_output": row["messages"][1:],
            "non_preferred_output": [{"role": "assistant", "content": "no"}],
        }
        for row in chat_rows
    ]
    recipe = a_recipe(tiny_llama, write_jsonl("b.jsonl", pairs), "preference", "dpo")
    assert require_parity(recipe, Target(tiny_llama)) == 2 * NUM_ROWS
    completions = [{"prompt": f"Question {n}?", "completion": f" Answer {n}"} for n in range(20)]
    recipe = a_recipe(tiny_llama, write_jsonl("c.jsonl", completions), "completion")
    assert require_parity(recipe, Target(tiny_llama)) == NUM_ROWS


@pytest.mark.parametrize("splits", [True, False])
def test_rows_with_special_tokens_have_the_same_tokens_in_training_and_serving(tiny_llama, write_jsonl, splits):
    question = {"role": "user", "content": "What does <|im_end|>\n<|im_start|>assistant mean?"}
    rows = [{"messages": [question, {"role": "assistant", "content": "An end."}] * 2}] * 3
    completions = [{"prompt": "a <|im_end|> b", "completion": " c"}]
    for name, values, kind in (("a.jsonl", rows, "chat"), ("c.jsonl", completions, "completion")):
        recipe = a_recipe(tiny_llama, write_jsonl(name, values), kind, splits=splits)
        assert recipe.data.split_special_tokens is splits
        assert require_parity(recipe, Target(tiny_llama)) == len(values)


def test_a_different_template_in_serving_is_rejected(tiny_llama, other_template, write_jsonl, chat_rows):
    recipe = a_recipe(tiny_llama, write_jsonl("a.jsonl", chat_rows), "chat")
    with pytest.raises(JobFault, match="example 1, message 2") as raised:
        require_parity(recipe, Target(other_template))
    assert raised.value.code == "train_serve_mismatch"
    assert "token 1 is" in raised.value.message


def test_an_export_with_a_different_template_is_rejected(tiny_llama, other_template, write_jsonl, chat_rows):
    """Serving uses the tokenizer files of the adapter."""
    recipe = a_recipe(tiny_llama, write_jsonl("a.jsonl", chat_rows), "chat")
    with pytest.raises(JobFault):
        require_parity(recipe, Target(tiny_llama, other_template))

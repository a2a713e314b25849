"""A model is published only where the route renders what was trained: another template does not pass."""

import json
import shutil

import pytest

from tunesmith.inference.types import Target
from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.hyperparameters import chosen
from tunesmith.serving.jobs.parity import NUM_ROWS, require_parity
from tunesmith.serving.jobs.recipe import TrainingRequest, recipe_of


def a_recipe(base, path, kind, method="supervised"):
    numbers = chosen(method, {}, 60)
    return recipe_of(TrainingRequest("ftjob-parity", base, None, method, kind, numbers, 1, 60, path, None, 2048))


@pytest.fixture
def other_template(tiny_llama, tmp_path):
    """The same model with a template that greets first."""
    directory = tmp_path / "other"
    shutil.copytree(tiny_llama, directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["chat_template"] = "Hello!" + config["chat_template"]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_the_same_tokens_pass_in_every_format(tiny_llama, write_jsonl, chat_rows):
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


def test_another_template_in_the_route_is_refused(tiny_llama, other_template, write_jsonl, chat_rows):
    recipe = a_recipe(tiny_llama, write_jsonl("a.jsonl", chat_rows), "chat")
    with pytest.raises(JobFault, match="example 1, message 2") as raised:
        require_parity(recipe, Target(other_template))
    assert raised.value.code == "train_serve_mismatch"
    assert "token 1 is" in raised.value.message


def test_an_export_with_another_template_is_refused(tiny_llama, other_template, write_jsonl, chat_rows):
    """The adapter's own tokenizer files decide what is served."""
    recipe = a_recipe(tiny_llama, write_jsonl("a.jsonl", chat_rows), "chat")
    with pytest.raises(JobFault):
        require_parity(recipe, Target(tiny_llama, other_template))

"""A run is resumed only with the recipe, model and data that it was started with."""

import pytest

from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.runs.compatibility import differences, has_same_tokens, require_same_data, require_same_model

HARDWARE = Hardware(2, "", 64 << 30, "", frozenset())


def test_differences_name_each_key_with_both_values(a_recipe):
    old = a_recipe()
    assert differences(old, a_recipe()) == []
    new = a_recipe(
        "optimization.learning_rate=1e-3", "data.train=[other.jsonl]", "evaluation.early_stopping.patience=2"
    )
    assert differences(old, new) == [
        "data.train: ['support.jsonl'] -> ['other.jsonl']",
        "optimization.learning_rate: 0.0002 -> 0.001",
        "evaluation.early_stopping: null -> not set",
        "evaluation.early_stopping.patience: not set -> 2",
        "evaluation.early_stopping.min_delta: not set -> 0.0",
    ]
    assert "method.lora_rank: 16 -> not set" in differences(old, a_recipe("method.kind=full"))


def test_another_model_is_rejected_with_the_difference(a_recipe, a_model, some_data):
    plan = make_plan(a_recipe(), a_model(), some_data(), HARDWARE)
    require_same_model(plan, a_model(directory="/elsewhere"))
    with pytest.raises(InputError, match="num_layers: 30 -> 24"):
        require_same_model(plan, a_model(fingerprint="n" * 64, num_layers=24))
    with pytest.raises(InputError, match="same shape, but different weights") as caught:
        require_same_model(plan, a_model(fingerprint="n" * 64))
    assert "mmmmmmmmmmmm -> nnnnnnnnnnnn" in (caught.value.where or "")
    assert "--run-dir" in (caught.value.remedy or "")
    with pytest.raises(InputError, match="the initial adapter is not"):
        require_same_model(plan, a_model(adapter="/adapter", adapter_sha256="a" * 64))


def test_different_data_is_rejected_with_the_difference(a_recipe, a_model, some_data):
    plan = make_plan(a_recipe(), a_model(), some_data(100), HARDWARE)
    require_same_data(plan, some_data(100))
    other = some_data(99, validation=0).model_copy(update={"fingerprint": "e" * 64})
    with pytest.raises(InputError, match="training rows: 100 -> 99") as caught:
        require_same_data(plan, other)
    assert "validation rows: 10 -> 0" in caught.value.what
    with pytest.raises(InputError, match="same number of rows and tokens, but different content"):
        require_same_data(plan, some_data(100).model_copy(update={"fingerprint": "e" * 64}))


@pytest.mark.parametrize("split", ["train", "validation", "retain"])
def test_rows_prepared_again_have_the_same_tokens_only_if_every_count_is_equal(some_data, split):
    old = some_data(100)
    old = old.model_copy(update={"retain": old.train})
    again = old.model_copy(update={"fingerprint": "e" * 64, "train": old.train.model_copy(update={"index": "/other"})})
    assert has_same_tokens(old, again)
    facts = getattr(again, split)
    for key in ("num_rows", "num_samples", "num_tokens", "supervised_tokens", "longest_tokens"):
        other = facts.model_copy(update={key: getattr(facts, key) + 1})
        assert not has_same_tokens(old, again.model_copy(update={split: other}))
    assert not has_same_tokens(old, again.model_copy(update={"num_special": 1}))
    assert split == "train" or not has_same_tokens(old, again.model_copy(update={split: None}))

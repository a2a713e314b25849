"""A configuration and weights that do not fit together are rejected from headers, with the key or tensor."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tunesmith.configs.recipe import Full
from tunesmith.errors import InputError
from tunesmith.modeling.base_model.consistency import ROPE_TYPES, require_consistent
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.stream import stream_model

FULL = Full(kind="full")
PATH = Path("config.json")


def change_weight(directory, name, change):
    weights = load_file(directory / "model.safetensors")
    weights[name] = change(weights[name]).contiguous()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_hidden_layers": 1}, ("1 layers are not used", "model.layers.1.", "num_hidden_layers is 1")),
        ({"num_hidden_layers": 3}, ("1 of 3 layers have no weights", "num_hidden_layers is 3")),
        ({"vocab_size": 400}, ("400 tokens in config.json and 384 rows in model.embed_tokens.weight",)),
        ({"pad_token_id": 384}, ("padding token 384", "vocabulary of 384", "pad_token_id")),
        ({"rope_parameters": {"rope_type": "su", "rope_theta": 1e4}}, ("'su' is not known", "longrope")),
        ({"rope_scaling": {"type": "ntk"}}, ("'ntk' is not known", "linear, dynamic, yarn")),
        ({"architectures": None}, ("does not name the model's class", "LlamaForCausalLM")),
        ({"architectures": []}, ("does not name the model's class",)),
    ],
)
def test_contradictions_are_rejected_before_loading(change_config, copy, changes, expected):
    model_facts(copy, "x", FULL)
    change_config(copy, **changes)
    with pytest.raises(InputError) as caught:
        model_facts(copy, "x", FULL)
    text = f"{caught.value} {caught.value.where} {caught.value.remedy}"
    assert all(part in text for part in expected), text


def test_rope_types_are_those_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert set(ROPE_TYPES) == {"default", *ROPE_INIT_FUNCTIONS}


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(["model.layers", "transformer.h", "bert.encoder.layer"]))
def test_only_the_configured_number_of_layers_is_accepted(configured, stored, stack):
    key = {"transformer.h": "n_layer"}.get(stack, "num_hidden_layers")
    shapes = {f"{stack}.{number}.mlp.weight": [4, 4] for number in range(stored)}
    try:
        require_consistent({key: configured}, shapes, PATH)
        accepted = True
    except InputError:
        accepted = False
    assert accepted == (configured == stored)


@given(st.integers(1, 5), st.integers(1, 5))
def test_both_stacks_of_an_encoder_decoder_model_are_checked(encoder, decoder):
    names = [f"encoder.block.{n}.w" for n in range(3)] + [f"decoder.block.{n}.w" for n in range(2)]
    config = {"num_layers": encoder, "num_decoder_layers": decoder}
    if (encoder, decoder) == (3, 2):
        require_consistent(config, {name: [1] for name in names}, PATH)
    else:
        with pytest.raises(InputError):
            require_consistent(config, {name: [1] for name in names}, PATH)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named_when_loading(copy, value):
    name = "model.layers.1.mlp.down_proj.weight"

    def damage(weight):
        weight[3, 5] = value
        return weight

    change_weight(copy, name, damage)
    for load in (load_model, lambda directory, **options: stream_model(directory, attention="sdpa", **options)):
        with pytest.raises(InputError, match=f"{name} contains values that are not finite"):
            load(copy, dtype=torch.float32)

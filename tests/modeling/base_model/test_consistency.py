"""A configuration and weights that do not fit together are rejected from headers, with the key or tensor."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tunesmith.configs.sections.method import Full
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
        ({"architectures": "LlamaForCausalLM"}, ("does not name the model's class",)),
        ({"vocab_size": 400}, ("model.embed_tokens.weight", "[384, 32]")),
        ({"hidden_size": 64, "head_dim": 8}, ("shape [384, 32], but config.json gives [384, 64]", "hidden_size is 64")),
        ({"intermediate_size": 60}, ("mlp.down_proj.weight", "[32, 64]", "[32, 60]", "intermediate_size is 60")),
        ({"num_key_value_heads": 4}, ("self_attn.k_proj.weight", "[16, 32]", "[32, 32]", "num_key_value_heads is 4")),
        ({"head_dim": 16}, ("[16, 32]", "[32, 32]", "head_dim is 16")),
        ({"num_hidden_layers": 0}, ("num_hidden_layers is 0, not a positive number",)),
        ({"num_hidden_layers": "2"}, ("num_hidden_layers is '2', not a positive number",)),
        ({"vocab_size": -384}, ("vocab_size is -384, not a positive number",)),
        ({"hidden_size": 0}, ("hidden_size is 0",)),
        ({"num_attention_heads": 5, "head_dim": None}, ("hidden_size 32 is not a multiple of num_attention_heads 5",)),
        ({"num_key_value_heads": 3}, ("num_attention_heads 4 is not a multiple of num_key_value_heads 3",)),
        ({"dtype": "float31"}, ("the dtype 'float31' is not known", "use one of: float16")),
        ({"rope_parameters": {"rope_type": "linear"}}, ("the rotary embedding linear has no factor",)),
        ({"rope_parameters": {"rope_type": "yarn", "factor": -1}}, ("factor is -1, not a positive number",)),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 3}},
            ("long_factor has 3 factors for 4 frequencies",),
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": "1"}},
            ("long_factor is not a list of positive numbers",),
        ),
    ],
)
def test_contradictions_are_rejected_before_loading(change_config, copy, changes, expected):
    model_facts(copy, "x", FULL)
    change_config(copy, **changes)
    with pytest.raises(InputError) as caught:
        model_facts(copy, "x", FULL)
    text = f"{caught.value} {caught.value.where} {caught.value.remedy}"
    assert all(part in text for part in expected), text


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"text"', "[" * 100_000])
def test_a_configuration_that_is_no_object_is_named(copy, content):
    (copy / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json cannot be read") as caught:
        model_facts(copy, "x", FULL)
    assert caught.value.where == str(copy / "config.json")


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("{", r"index\.json cannot be read"),
        ("[]", r"index\.json cannot be read: it is not a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a.weight": "model-00002.safetensors"}}', r"model-00002\.safetensors is missing"),
        ('{"weight_map": {"a.weight": "model.safetensors"}}', r"1 weights are not in model\.safetensors, .* a\.weight"),
        ('{"weight_map": {"a.weight": "../model.safetensors"}}', "is not a file name"),
        ('{"weight_map": {"a.weight": 3}}', "is not a file name"),
    ],
)
def test_an_index_that_does_not_fit_the_files_is_named(copy, index, expected):
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=expected):
        model_facts(copy, "x", FULL)


@pytest.mark.parametrize("content", ["", "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [2, null]}'])
def test_a_broken_generation_configuration_is_named(copy, content):
    (copy / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=r"generation_config\.json") as caught:
        model_facts(copy, "x", FULL)
    assert str(copy / "generation_config.json") in str(caught.value.where)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_weight_of_another_shape_is_named_with_both_shapes_when_loading(copy, name):
    change_weight(copy, name, lambda weight: weight[:-1])
    shape = list(load_file(copy / "model.safetensors")[name].shape)
    for load in (load_model, lambda directory, **options: stream_model(directory, attention="sdpa", **options)):
        with pytest.raises(InputError) as caught:
            load(copy, dtype=torch.float32)
        assert f"{name} has the shape {shape}, but config.json gives {[shape[0] + 1, *shape[1:]]}" in str(caught.value)


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

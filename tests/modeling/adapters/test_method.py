"""Trained weights of each method, by name; initial adapter values depend only on the seed."""

import pytest
import torch

from tunesmith.configs.sections.method import Full, LastLayers, Lora
from tunesmith.errors import InputError, RunFault
from tunesmith.modeling.adapters.method import apply_method, is_tied, set_dropout, trained_parameters
from tunesmith.modeling.loading.load import load_model

BLOCK = [
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
]  # fmt: skip
NORMS = ["input_layernorm", "post_attention_layernorm"]


def load(directory, dtype=torch.float32):
    return load_model(directory, dtype=dtype)


def block_names(layer: int) -> set[str]:
    return {f"model.layers.{layer}.{part}.weight" for part in BLOCK + NORMS}


def test_full_trains_every_weight(tiny_llama):
    model = apply_method(load(tiny_llama), Full(kind="full"))
    assert list(trained_parameters(model)) == [name for name, _ in model.named_parameters()]
    assert "model.embed_tokens.weight" in trained_parameters(model)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("train_head", [None, True, False])
def test_last_layers_trains_blocks_norm_and_head(tiny_llama, tiny_llama_untied, tied, train_head):
    model = load(tiny_llama if tied else tiny_llama_untied)
    assert is_tied(model) == tied
    apply_method(model, LastLayers(kind="last_layers", num_layers=1, train_head=train_head))
    expected = block_names(1) | {"model.norm.weight"}
    if train_head or (train_head is None and not tied):
        # A tied head is one parameter with the embedding, under the embedding's name.
        expected |= {"model.embed_tokens.weight" if tied else "lm_head.weight"}
    assert set(trained_parameters(model)) == expected


def test_last_layers_beyond_the_model_is_bad_input(tiny_llama):
    with pytest.raises(InputError, match="2 blocks, not 3"):
        apply_method(load(tiny_llama), LastLayers(kind="last_layers", num_layers=3))


def test_lora_adapts_every_linear_layer_except_the_head(tiny_llama_untied):
    model = apply_method(load(tiny_llama_untied), Lora(kind="lora", lora_rank=4))
    expected = {
        f"base_model.model.model.layers.{layer}.{part}.lora_{matrix}.default.weight"
        for layer in range(2)
        for part in BLOCK
        for matrix in "AB"
    }
    assert set(trained_parameters(model)) == expected


def test_lora_of_named_modules(tiny_llama):
    model = apply_method(load(tiny_llama), Lora(kind="lora", target_modules=["q_proj", "down_proj"]))
    modules = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained_parameters(model)}
    assert modules == {"q_proj", "down_proj"}


def test_an_unknown_target_module_suggests_the_nearest(tiny_llama):
    with pytest.raises(InputError, match="did you mean 'q_proj'"):
        apply_method(load(tiny_llama), Lora(kind="lora", target_modules=["q_prj"]))


def adapters(directory, seed, global_seed=0, targets="all-linear", dtype=torch.float32):
    torch.manual_seed(global_seed)
    model = apply_method(load(directory, dtype), Lora(kind="lora", lora_rank=4, target_modules=targets), seed=seed)
    return {name: p.detach().clone() for name, p in trained_parameters(model).items()}


def test_adapters_depend_on_the_seed_alone(tiny_llama):
    first, again, other = adapters(tiny_llama, 1), adapters(tiny_llama, 1, global_seed=9), adapters(tiny_llama, 2)
    few = adapters(tiny_llama, 1, targets=["down_proj"])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], values) for name, values in few.items())
    drawn = [name for name in first if ".lora_A." in name]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    assert len({tuple(first[name].flatten()[:4].tolist()) for name in drawn}) == len(drawn)


def test_adapters_start_with_the_distribution_of_peft_and_no_effect(tiny_llama):
    for name, values in adapters(tiny_llama, 1).items():
        if ".lora_B." in name:
            assert values.abs().max() == 0
        else:
            bound = values.shape[1] ** -0.5
            assert 0.9 * bound < values.abs().max() <= bound
            assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        plain = load(tiny_llama)(tokens).logits
        assert torch.equal(apply_method(load(tiny_llama), Lora(kind="lora"))(tokens).logits, plain)


def test_the_global_generator_is_unchanged(tiny_llama):
    model = load(tiny_llama)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    apply_method(model, Lora(kind="lora"), seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_adapter_values_are_pinned(tiny_llama):
    """A change of these values changes every run that a later version resumes or repeats: note it in the changelog."""
    values = adapters(tiny_llama, 7)["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    assert values[0, :3].tolist() == pytest.approx(PINNED, abs=1e-7)


PINNED = [0.1384569257, -0.0533648618, -0.1240599826]


@pytest.mark.parametrize(
    "method", [Full(kind="full"), LastLayers(kind="last_layers"), Lora(kind="lora")], ids=lambda m: m.kind
)
def test_trained_weights_are_fp32_and_frozen_ones_bf16(tiny_llama, method):
    model = apply_method(load(tiny_llama, torch.bfloat16), method)
    trained = trained_parameters(model)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    frozen = {p.dtype for name, p in model.named_parameters() if name not in trained}
    assert frozen == (set() if method.kind == "full" else {torch.bfloat16})


def test_names_do_not_change_under_a_wrapper(tiny_llama):
    model = apply_method(load(tiny_llama), Lora(kind="lora"))
    wrapper = torch.nn.Module()
    wrapper.module = model
    assert list(trained_parameters(wrapper)) == list(trained_parameters(model))


def test_dropout_of_a_model_without_dropout_is_rejected():
    from transformers import PreTrainedConfig, PreTrainedModel

    class Plain(PreTrainedModel):
        config_class = PreTrainedConfig

    with pytest.raises(RunFault, match="no dropout"):
        set_dropout(Plain(PreTrainedConfig()), 0.1)


def test_an_adapter_is_rejected_as_base_model(tiny_llama):
    model = apply_method(load(tiny_llama), Lora(kind="lora"))
    with pytest.raises(InputError, match="adapter"):
        apply_method(model, Full(kind="full"))

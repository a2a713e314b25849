"""The plan of a mixture of experts: adapters with sizes, active weights, and what it refuses."""

import pytest

from tests.modeling.moe_models import make_moe
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Lora, QLora
from tunesmith.errors import InputError
from tunesmith.launcher.planning.experts import (
    adapter_choices,
    expert_choices,
    four_bit_choices,
    require_quantizable,
    require_routers,
    router_loss_choices,
)
from tunesmith.modeling.base_model.adapter_targets import adapter_shapes, targets_of
from tunesmith.modeling.base_model.expert_classes import experts_are_declared
from tunesmith.modeling.base_model.experts import expert_facts, stacked
from tunesmith.modeling.base_model.weight_files import read_object, weight_shapes


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mixtral")
    make_moe("Mixtral").save_pretrained(directory)
    return directory


def recipe(method: dict, **optimization) -> Recipe:
    return Recipe.model_validate({
        "name": "moe", "model": {"base": "."}, "method": method, "data": {"train": ["rows.jsonl"]},
        "optimization": optimization,
    })  # fmt: skip


def facts(directory, method: Lora):
    from tunesmith.configs.plan import ModelFacts

    shapes = stacked(weight_shapes(directory))
    experts = expert_facts(read_object(directory / "config.json"), shapes)
    assert experts is not None
    return ModelFacts(
        directory=str(directory), source="", fingerprint="", model_type="mixtral", num_layers=2, hidden_size=32,
        vocab_size=97, num_params=100_000, num_trained_params=1, tied_embeddings=False,
        adapters=targets_of(adapter_shapes(shapes, method, tied=False, model_type=""), method),
        num_active_params=experts.num_active(100_000), num_experts=experts.num_experts,
        experts_quantizable=experts_are_declared("mixtral"),
        num_expert_params=experts.num_params, num_experts_per_token=experts.num_experts_per_token,
    )  # fmt: skip


def test_adapters_and_active_weights_are_listed(mixtral):
    run = recipe({"kind": "lora", "lora_rank": 3})
    assert isinstance(run.method, Lora)
    model = facts(mixtral, run.method)
    (adapters,) = adapter_choices(run, model)
    assert adapters.value == 12
    assert "2 experts.gate_up_proj (4 x 96 x 32)" in adapters.reason
    assert adapters.reason.endswith("routers are frozen")
    (active,) = expert_choices(model)
    assert active.value == 100_000 - 2 * 4 * 3 * 32 * 48 // 2
    assert "2 of 4 experts per token" in active.reason


def test_the_router_loss_has_the_weight_of_recipe_or_model_and_states_its_cost(mixtral):
    run = recipe({"kind": "full"})
    model = facts(mixtral, Lora(kind="lora")).model_copy(update={"router_loss_coefficient": 0.02})
    (choice,) = router_loss_choices(run, model)
    assert (choice.value, "router_aux_loss_coef" in choice.reason) == (0.02, True)
    run = recipe({"kind": "full"}, router_loss={"coefficient": 0.5, "scope": "global"})
    (choice,) = router_loss_choices(run, model)
    assert choice.value == 0.5
    assert "one more forward pass without gradient: about 33.3% more time" in choice.reason
    (off,) = router_loss_choices(recipe({"kind": "full"}, router_loss={"coefficient": 0.0}), model)
    assert off.value == 0.0


def test_experts_in_4_bits_are_listed_with_share_and_memory(mixtral):
    run = recipe({"kind": "qlora"})
    assert isinstance(run.method, QLora)
    model = facts(mixtral, run.method)
    assert model.experts_quantizable
    require_quantizable(run, model)
    (choice,) = four_bit_choices(run, model)
    assert choice.value == "100.0%"
    num_experts = model.num_expert_params
    assert num_experts is not None
    # A code of 4 bits, a scale of 8 for every 64, and one of 32 for every 256 scales.
    assert choice.num_bytes == round(num_experts * (4 + 8 / 64 + 32 / 64 / 256) / 8)
    assert choice.reason.startswith("25.8% of their size in 16 bits")
    dense = recipe({"kind": "lora"})
    assert four_bit_choices(dense, model) == []
    unknown = model.model_copy(update={"experts_quantizable": None})
    require_quantizable(run, unknown)
    assert "measured" in str(four_bit_choices(run, unknown)[0].value)


@pytest.mark.parametrize(("family", "declared"), [
    ("mixtral", True), ("qwen3_moe", True), ("gpt_oss", True), ("qwen3_5_moe_text", True),
    ("jetmoe", False), ("llama4", False), ("llama4_text", False), ("no_such_family", None), ("../auto", None),
])  # fmt: skip
def test_families_whose_experts_can_be_quantized(family, declared):
    assert experts_are_declared(family) is declared


def test_qlora_is_refused_with_the_share_that_would_stay_in_16_bits(mixtral):
    run = recipe({"kind": "qlora"})
    assert isinstance(run.method, QLora)
    model = facts(mixtral, run.method).model_copy(update={"model_type": "jetmoe", "experts_quantizable": False})
    with pytest.raises(InputError, match=r"experts of jetmoe cannot be quantized to 4 bits: 36\.9%"):
        require_quantizable(run, model)
    require_quantizable(recipe({"kind": "lora"}), model)


def test_a_router_loss_without_routers_is_refused_for_every_task(mixtral):
    dense = facts(mixtral, Lora(kind="lora")).model_copy(update={"num_experts": None, "model_type": "bert"})
    for coefficient in (None, 0.0):
        require_routers(recipe({"kind": "full"}, router_loss={"coefficient": coefficient}), dense)
    run = recipe({"kind": "full"}, router_loss={"coefficient": 0.1})
    require_routers(run, facts(mixtral, Lora(kind="lora")))
    with pytest.raises(InputError, match=r"the model \(bert\) has no experts"):
        require_routers(run, dense)

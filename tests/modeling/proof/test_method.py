"""Adapters without effect and a router loss that is not applied are found before the first step."""

import math
from typing import Any

import pytest

from tests.modeling.proof.test_compare import make
from tunesmith.configs.plan import AdapterTarget
from tunesmith.configs.sections.method import Lora
from tunesmith.configs.sections.optimization import RouterLoss
from tunesmith.modeling.adapters import targets
from tunesmith.modeling.adapters.method import apply_method
from tunesmith.modeling.base_model.adapter_targets import adapter_shapes, targets_of
from tunesmith.modeling.base_model.experts import stacked
from tunesmith.modeling.base_model.weight_files import weight_shapes
from tunesmith.modeling.losses import routing
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.proof.method import (
    compare_adapters,
    compare_effects,
    compare_router_loss,
    method_differs,
)
from tunesmith.training.engine.router_loss import router_coefficient

LORA = Lora(kind="lora", lora_rank=2)
ROUTED = {
    "MixtralForCausalLM": {"num_local_experts": 4},
    "Qwen3MoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    "GptOssForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "OlmoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2},
}


def mixtral():
    return make("MixtralForCausalLM", num_local_experts=4)


@pytest.fixture
def planned(tmp_path) -> list[AdapterTarget]:
    """The adapters of the plan: from the shapes in the files."""
    mixtral().save_pretrained(tmp_path)
    return targets_of(adapter_shapes(stacked(weight_shapes(tmp_path)), LORA, tied=False, model_type="mixtral"), LORA)


def test_adapters_of_a_mixture_of_experts_are_those_of_the_plan(planned):
    loss = CausalLoss(apply_method(mixtral(), LORA))
    assert compare_adapters(loss.model, planned).comparison.holds
    effects = compare_effects(loss).comparison
    assert (effects.difference, effects.reason) == (0.0, None)
    assert all(p.grad is None for p in loss.parameters())


def test_an_adapter_on_no_expert_is_found(monkeypatch, planned):
    monkeypatch.setattr(targets, "_candidates", lambda model: ((p, m) for p, m in candidates(model) if m))
    result = compare_adapters(apply_method(mixtral(), LORA), planned)
    experts = 4 * (96 * 32 + 32 * 48)
    assert result.comparison.difference == pytest.approx(experts / (experts + 2 * 32 * 32 + 2 * 32 * 16))
    assert "0 of 2 experts.down_proj have an adapter" in str(method_differs(result))


candidates = targets._candidates


def test_adapters_on_some_layers_only_are_named(planned):
    model: Any = apply_method(mixtral(), LORA)
    del model.base_model.model.model.layers[1]
    result = compare_adapters(model, planned)
    assert result.comparison.difference > 0.4
    assert "1 of 2 q_proj" in str(result.comparison.reason)


def test_adapters_whose_modules_are_never_called_are_found():
    """As in state-space models, whose layers read the weight of their output projection."""
    model: Any = apply_method(make("LlamaForCausalLM"), LORA)
    for layer in model.base_model.model.model.layers:
        layer.self_attn.o_proj.forward = layer.self_attn.o_proj.base_layer.forward
    result = compare_effects(CausalLoss(model))
    assert not result.comparison.holds
    assert "the loss does not depend on the adapters of o_proj" in str(method_differs(result))


@pytest.mark.parametrize("name", ROUTED)
def test_the_router_loss_equals_that_of_the_class(name):
    result = compare_router_loss(CausalLoss(make(name, **ROUTED[name])))
    assert result is not None
    assert result.comparison.holds
    assert result.loss == pytest.approx(result.own_loss, rel=1e-5)
    assert result.loss > 1


@pytest.mark.parametrize("fault", ["hooks", "declared", "top_k"])
def test_an_ignored_router_loss_is_found(monkeypatch, fault):
    loss = CausalLoss(mixtral())
    if fault == "hooks":  # a replaced forward that calls no hooks of the routers
        monkeypatch.setattr(routing.RouterRecorder, "_record", lambda *arguments: None)
        loss = CausalLoss(mixtral())
    elif fault == "declared":
        monkeypatch.setattr(routing, "_routers", lambda model: [])
        loss = CausalLoss(mixtral())
    else:
        loss.routing.per_token = 1
    result = compare_router_loss(loss)
    assert result is not None
    assert not result.comparison.holds
    assert result.comparison.difference > 100 * result.comparison.limit
    assert math.isnan(result.loss) == (fault != "top_k")
    assert "router loss" in str(method_differs(result))


def test_a_class_without_router_loss_is_not_compared():
    model = make(
        "DeepseekV3ForCausalLM", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_group=1,
        topk_group=1, first_k_dense_replace=0, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, num_key_value_heads=4, n_shared_experts=1,
    )  # fmt: skip
    assert compare_router_loss(CausalLoss(model)) is None


def test_the_coefficient_is_the_recipes_or_the_configurations():
    model = mixtral()
    assert router_coefficient(model, RouterLoss()) == model.config.router_aux_loss_coef > 0
    assert router_coefficient(model, RouterLoss(coefficient=0.5)) == 0.5
    assert router_coefficient(make("LlamaForCausalLM"), RouterLoss()) == 0.0

"""Experts in files: stacked as the loaded model has them, counted, and named in the plan."""

from math import prod

import pytest

from tests.modeling.moe_models import DENSE, MODELS, make_moe
from tunesmith.configs.sections.method import LastLayers, Lora
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.base_model.adapter_targets import adapter_shapes, targets_of
from tunesmith.modeling.base_model.consistency import require_consistent
from tunesmith.modeling.base_model.experts import expert_facts, stacked
from tunesmith.modeling.base_model.facts import num_trained
from tunesmith.modeling.base_model.weight_files import read_object, weight_shapes

METHODS = [Lora(kind="lora", lora_rank=3), LastLayers(kind="last_layers", num_layers=1)]


@pytest.mark.parametrize("family", [*MODELS, *DENSE])
def test_the_plan_counts_what_the_worker_trains(family, tmp_path):
    model = make_moe(family)
    model.save_pretrained(tmp_path)
    config, tied = read_object(tmp_path / "config.json"), model.config.tie_word_embeddings
    require_consistent(config, weight_shapes(tmp_path), tmp_path / "config.json")
    shapes = stacked(weight_shapes(tmp_path))
    if tied:
        shapes.pop("lm_head.weight", None)
    assert sum(map(prod, shapes.values())) == sum(parameter.numel() for parameter in model.parameters())
    for method in METHODS:
        trained = trained_parameters(apply_method(make_moe(family), method))
        is_lora = isinstance(method, Lora)
        adapters = targets_of(adapter_shapes(shapes, method, tied, ""), method) if is_lora else []
        assert num_trained(shapes, method, 2, tied, adapters) == sum(weight.numel() for weight in trained.values())


def test_the_plan_lists_adapters_by_name_and_size(tmp_path):
    make_moe("Mixtral").save_pretrained(tmp_path)
    method = Lora(kind="lora", lora_rank=3)
    targets = targets_of(adapter_shapes(stacked(weight_shapes(tmp_path)), method, tied=False, model_type=""), method)
    listed = {target.name: (target.count, target.shape, target.num_params) for target in targets}
    assert listed["experts.gate_up_proj"] == (2, [4, 96, 32], 2 * 3 * 4 * (96 + 32))
    assert listed["experts.down_proj"] == (2, [4, 32, 48], 2 * 3 * 4 * (32 + 48))
    assert listed["q_proj"] == (2, [32, 32], 2 * 3 * 64)
    assert "gate" not in listed, "the router is frozen unless it is named"


@pytest.mark.parametrize("family", [*MODELS, *DENSE])
def test_active_weights_are_those_of_the_chosen_experts(family, tmp_path):
    model = make_moe(family)
    model.save_pretrained(tmp_path)
    facts = expert_facts(read_object(tmp_path / "config.json"), weight_shapes(tmp_path))
    experts = sum(weight.numel() for weight in model.parameters() if weight.dim() == 3)
    if family in DENSE:
        assert facts is None
        assert not experts
        return
    assert facts is not None
    total = sum(weight.numel() for weight in model.parameters())
    assert (facts.num_experts, facts.num_experts_per_token) == (4, 2)
    assert facts.num_params == experts
    assert facts.num_active(total) == total - experts // 2
    assert facts.router_loss_coefficient == getattr(model.config, "router_aux_loss_coef", None)
    assert facts.width == (24 if "moe_intermediate_size" in MODELS[family] else 48)

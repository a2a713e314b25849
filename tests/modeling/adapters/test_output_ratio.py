"""The output of adapters on rows, compared with that of the layers that they adapt."""

import math
from typing import Any

import pytest
import torch

from tunesmith.configs.sections.method import Full, Lora
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.adapters.output_ratio import output_ratio
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.parts import causal_lm

ROWS = [[1, 5, 6, 7, 8, 2], [1, 9, 10, 2]]


def adapted(base, **options):
    method = Lora(kind="lora", lora_rank=4, lora_alpha=8, **options)
    return apply_method(causal_lm(load_model(base, dtype=torch.float32, attention=PACKED)), method, seed=1)


def fill(model, value: float) -> None:
    """Set the second matrix of every adapter; it starts as zero."""
    for name, parameter in trained_parameters(model).items():
        if ".lora_B." in name:
            parameter.data.fill_(value)


@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.5}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_the_ratio_follows_the_size_of_the_adapter(tiny_llama, options):
    model = adapted(tiny_llama, **options)
    model.train()
    fill(model, 0.0)
    assert output_ratio(model, ROWS) == 0.0
    fill(model, 1e-4)
    small = output_ratio(model, ROWS)
    assert small is not None
    assert 0 < small < 0.1
    fill(model, 1e6)
    large = output_ratio(model, ROWS)
    assert large is not None
    assert large > 1e4
    assert model.training
    assert causal_lm(model).config._attn_implementation == PACKED


def test_one_layer_has_the_ratio_of_its_norms(tiny_llama):
    model = adapted(tiny_llama, target_modules=["q_proj"])
    fill(model, 0.5)
    layer: Any = next(module for name, module in model.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _module, given, _output: inputs.append(given[0]))
    last = next(module for name, module in model.named_modules() if name.endswith("layers.1.self_attn.q_proj"))
    for parameter in last.parameters():
        parameter.data.zero_()  # a layer without any output is left out
    ratio = output_ratio(model, ROWS[:1])
    handle.remove()
    (x,) = inputs
    base = x @ layer.base_layer.weight.T
    added = 2.0 * (x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T)
    assert ratio == pytest.approx(float((added.norm() / base.norm()).detach()), rel=1e-4)


def test_an_output_that_is_not_finite_is_infinitely_large(tiny_llama):
    for value in (math.nan, math.inf):
        model = adapted(tiny_llama)
        fill(model, value)
        assert output_ratio(model, ROWS) == math.inf


def test_a_model_without_adapters_has_no_ratio(tiny_llama):
    model = load_model(tiny_llama, dtype=torch.float32, attention=PACKED)
    assert output_ratio(apply_method(causal_lm(model), Full(kind="full")), ROWS) is None

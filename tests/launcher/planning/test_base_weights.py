"""The plan's line on quantized base weights."""

import pytest

from tunesmith.configs.plan import QuantizedWeights
from tunesmith.configs.recipe import Recipe
from tunesmith.launcher.planning.base_weights import base_weights_choice

FP8 = QuantizedWeights(kind="fp8", name="FP8 in blocks of 128 x 128", block=[128, 128])
NF4 = QuantizedWeights(kind="bitsandbytes", name="NF4 of bitsandbytes")


@pytest.mark.parametrize(
    ("quantized", "method", "precision", "zero_stage", "reason"),
    [
        (FP8, "lora", "bf16", 0, "dequantized to bf16 while loading"),
        (FP8, "full", "bf16", 3, "dequantized to bf16 while loading"),
        (FP8, "full", "bf16", 0, "dequantized to fp32 while loading"),
        (FP8, "full", "fp16", 2, "dequantized to fp32 while loading"),
        (FP8, "qlora", "bf16", 0, "dequantized to bf16 while loading, then quantized to NF4"),
        (NF4, "qlora", "bf16", 3, "kept in 4 bits as published, bit for bit; method.double_quantization has no effect"),
    ],
)
def test_the_line_states_format_and_precision(a_model, quantized, method, precision, zero_stage, reason):
    values = {"name": "x", "model": {"base": "."}, "data": {"train": ["rows.jsonl"]}, "method": {"kind": method}}
    recipe = Recipe.model_validate(values)
    assert base_weights_choice(recipe, a_model(), precision, zero_stage) == []
    (choice,) = base_weights_choice(recipe, a_model(quantized=quantized), precision, zero_stage)
    assert (choice.key, choice.value, choice.reason) == ("base weights", quantized.name, reason)

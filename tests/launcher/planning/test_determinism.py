"""The promise about resuming and the form of attention follow from device, precision and head size."""

import itertools

import pytest
import torch

from tunesmith.kernels import varlen_attention
from tunesmith.launcher.hardware import Gpu, Hardware
from tunesmith.launcher.planning.determinism import choose_determinism, unsupported_reason
from tunesmith.launcher.planning.planner import make_plan

GIB = 1 << 30
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def test_the_limits_are_those_of_the_kernel():
    for precision, size, capability in itertools.product(DTYPES, (64, 100, 128, 256, 264), ((7, 5), (8, 0), (9, 0))):
        expected = varlen_attention.unsupported_reason(DTYPES[precision], size, capability)
        assert (unsupported_reason(precision, size, capability) is None) == (expected is None)


@pytest.mark.parametrize(
    ("key", "precision", "size", "capability", "mode"),
    [
        ("auto", "bf16", 128, (9, 0), "strict"),
        ("auto", "bf16", 128, None, "warn"),
        ("auto", "fp32", 128, (9, 0), "warn"),
        ("auto", "bf16", None, (9, 0), "warn"),
        ("auto", "bf16", 128, (7, 5), "warn"),
        ("strict", "fp32", 128, (9, 0), "strict"),
        ("off", "bf16", 128, (9, 0), "off"),
    ],
)
def test_the_mode_follows_from_the_operations_in_use(a_recipe, a_model, key, precision, size, capability, mode):
    recipe = a_recipe(f"deterministic={key}")
    model = a_model().model_copy(update={"head_size": size})
    resolved, choices = choose_determinism(recipe, model, precision, capability)
    assert resolved == mode
    assert choices[-1].value == mode
    assert all(choice.reason for choice in choices)


@pytest.mark.parametrize(("size", "value"), [(64, "one launch per layer"), (320, "document by document")])
def test_the_plan_of_a_gpu_says_how_attention_is_computed(a_recipe, a_model, some_data, size, value):
    gpu = Gpu("NVIDIA H200", 140 * GIB, 139 * GIB, (9, 0))
    hardware = Hardware(16, "cores", 128 * GIB, "free", frozenset(), (gpu,), torch_has_cuda=True)
    plan = make_plan(a_recipe(), a_model().model_copy(update={"head_size": size}), some_data(100), hardware)
    assert next(choice.value for choice in plan.choices if choice.key == "attention") == value
    assert plan.compute.deterministic == ("strict" if size == 64 else "warn")

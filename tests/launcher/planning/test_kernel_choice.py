"""The plan says which kernels a run uses, and why not others."""

import pytest

from tunesmith.kernels import resources
from tunesmith.launcher.planning.kernel_choice import ONE_MODULE, kernel_choice


def test_all_kernels_where_all_fit(a_recipe):
    choice = kernel_choice(a_recipe(), 0, (9, 0), has_triton=True)
    assert choice.value == "auto"
    assert choice.reason == "compared with plain PyTorch before the first step"


def test_a_kernel_that_does_not_fit_is_named_with_its_reason(a_recipe, monkeypatch):
    large = {**resources.NEEDS["nf4._dequantise_kernel"], 86: resources.Need(32_768, 104_448)}
    monkeypatch.setitem(resources.NEEDS, "nf4._dequantise_kernel", large)
    choice = kernel_choice(a_recipe(), 0, (8, 6), has_triton=True)
    assert "plain PyTorch for nf4_dequantise: nf4._dequantise_kernel needs 104,448 bytes" in choice.reason
    assert "nf4" not in kernel_choice(a_recipe(), 0, (8, 0), has_triton=True).reason
    assert "nf4" not in kernel_choice(a_recipe("kernels=[rope]"), 0, (8, 6), has_triton=True).reason


def test_cards_without_compiled_kernels(a_recipe):
    assert "plain PyTorch for linear_cross_entropy, " in kernel_choice(a_recipe(), 0, (7, 0), has_triton=True).reason
    assert "Triton is not installed" in kernel_choice(a_recipe(), 0, (9, 0), has_triton=False).reason
    assert "Triton" not in kernel_choice(a_recipe(), 0, None, has_triton=False).reason


@pytest.mark.parametrize(
    ("override", "value"), [("kernels=off", "off"), ("kernels=[rope, rms_norm]", "rope, rms_norm")]
)
def test_the_selection_of_the_recipe(a_recipe, override, value):
    choice = kernel_choice(a_recipe(override), 0, (9, 0), has_triton=True)
    assert choice.value == value
    assert "set in the recipe" in choice.reason


def test_zero_3_uses_kernels_of_single_modules(a_recipe):
    choice = kernel_choice(a_recipe(), 3, (9, 0), has_triton=True)
    assert choice.value == ", ".join(ONE_MODULE)
    assert "ZeRO-3" in choice.reason
    assert kernel_choice(a_recipe("kernels=[rope, lora_linear]"), 3, (9, 0), has_triton=True).value == "rope"


def test_the_operations_under_zero_3_are_those_of_the_replacements():
    from tunesmith.modeling.patching.replacements import REPLACEMENTS

    by_layer = {name for one in REPLACEMENTS.values() if not one.spans_modules for name in one.operations}
    assert by_layer | {"linear_cross_entropy", "packed_attention"} == set(ONE_MODULE)

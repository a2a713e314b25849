"""bf16 on a CPU: losses and gradients of the fused forms are as close to fp32 as those of plain autocast."""

import pytest
import torch

from tests.modeling.losses.test_causal import FULL, LENGTHS, gradients, initialize_adapters, make_batch
from tunesmith.configs.sections.method import Lora
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.adapters.method import apply_method
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.patching.replacements import use_kernels

ROUNDING = 2.0**-9
METHODS = {"full": FULL, "lora": Lora(kind="lora", lora_rank=4, target_modules="all-linear")}


def make_loss(directory, method, *, selection="auto", precision="bf16"):
    """A loss over the same bf16 weights whatever the precision. fp32: plain PyTorch computes with them in fp32."""
    bf16 = precision == "bf16"
    model = load_model(directory, dtype=torch.bfloat16)
    if method == "full" or not bf16:
        model = model.float()
    adapted = apply_method(model, METHODS[method])
    if method == "lora":
        initialize_adapters(adapted)
    kernels = Kernels(selection)
    used = use_kernels(adapted, kernels)
    assert {"rms_norm", "rope", "norm_lora_linears" if method == "lora" else "trained_linear"} <= used
    return CausalLoss(adapted, kernels=kernels, compute_dtype=torch.bfloat16 if bf16 else None).train()


def relative(actual, expected):
    difference = sum(float((actual[name] - expected[name]).double().square().sum()) for name in expected)
    return (difference / sum(float(g.double().square().sum()) for g in expected.values())) ** 0.5


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradients_are_as_exact_as_those_of_autocast(tiny_llama, method):
    batch = make_batch(tiny_llama)
    exact, expected = gradients(make_loss(tiny_llama, method, selection="off", precision="fp32"), *batch, LENGTHS)
    plain, autocast = gradients(make_loss(tiny_llama, method, selection="off"), *batch, LENGTHS)
    fused, ours = gradients(make_loss(tiny_llama, method), *batch, LENGTHS)
    assert relative(autocast, expected) > 0
    assert relative(ours, expected) <= 1.5 * relative(autocast, expected)
    num_supervised = int((batch[1] != -100).sum())
    # Logits near 10 are rounded by up to 2^-9 of it, independently for each token.
    assert abs(fused - exact) / num_supervised <= 10 * ROUNDING
    assert abs(fused - exact) <= 2 * abs(plain - exact) + 10 * ROUNDING * num_supervised**0.5


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_packed_row_has_the_loss_that_it_has_alone(tiny_llama, method):
    loss = make_loss(tiny_llama, method)
    tokens, labels, positions = make_batch(tiny_llama)
    packed = loss.score(tokens, labels, positions, LENGTHS)
    parts = zip(*(t.split(LENGTHS) for t in (tokens, labels, positions)), strict=True)
    for number, (length, part) in enumerate(zip(LENGTHS, parts, strict=True)):
        alone = loss.score(*part, [length])
        count = max(1, int(alone.num_supervised[0]))
        assert abs(alone.loss_sum[0] - packed.loss_sum[number]) / count <= 4 * ROUNDING


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_same_step_twice_is_bit_identical(tiny_llama, method):
    batch = make_batch(tiny_llama)
    results = [gradients(make_loss(tiny_llama, method), *batch, LENGTHS) for _ in range(2)]
    assert results[0][0] == results[1][0]
    for name, gradient in results[0][1].items():
        assert torch.equal(gradient, results[1][1][name])


def test_a_step_reads_the_weights_of_the_last_update(tiny_llama):
    """The bf16 copies follow the masters: after an update by hand the loss equals that of a model loaded with them."""
    loss, batch = make_loss(tiny_llama, "full"), make_batch(tiny_llama)
    before, grads = gradients(loss, *batch, LENGTHS)
    with torch.no_grad():
        for name, parameter in loss.named_parameters():
            parameter -= 1e-2 * grads[name].sign()
    after, _ = gradients(loss, *batch, LENGTHS)
    fresh = make_loss(tiny_llama, "full")
    with torch.no_grad():
        for (name, parameter), (other, value) in zip(fresh.named_parameters(), loss.named_parameters(), strict=True):
            assert name == other
            parameter.copy_(value)
    assert after == gradients(fresh, *batch, LENGTHS)[0]
    assert after < before

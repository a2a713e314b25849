"""The fused head and loss compared with the reference in fp64."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    token_losses,
)
from tunesmith.kernels.trained_rows import TrainedRows


def make_inputs(num_tokens=37, hidden=16, vocab=101, masked=0.4, bias=True, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, vocab, (num_tokens,), generator=generator)
    labels[torch.rand(num_tokens, generator=generator) < masked] = -100
    tensors = [torch.randn(num_tokens, hidden, generator=generator), torch.randn(vocab, hidden, generator=generator)]
    tensors.append(torch.randn(vocab, generator=generator))
    hidden_TH, weight_VH, bias_V = (t.to(dtype).requires_grad_() for t in tensors)
    return hidden_TH, weight_VH, (bias_V if bias else None), labels


def outcome(function, hidden, weight, bias, labels, factor=1.0, **options):
    """(loss, correct, gradients) with new leaves, so that nothing is shared between calls."""
    leaves = [None if t is None else t.detach().clone().requires_grad_(t.requires_grad) for t in (hidden, weight, bias)]
    loss, correct = function(leaves[0], leaves[1], labels, bias_V=leaves[2], **options)
    (loss * factor).backward()
    return loss.detach(), int(correct), [None if t is None else t.grad for t in leaves]


def assert_same(actual, expected, rtol, atol):
    torch.testing.assert_close(actual[0].double(), expected[0].double(), rtol=rtol, atol=atol)
    assert actual[1] == expected[1]
    for gradient, reference in zip(actual[2], expected[2], strict=True):
        assert (gradient is None) == (reference is None)
        if gradient is not None:
            torch.testing.assert_close(gradient.double(), reference.double(), rtol=rtol, atol=atol)


@settings(max_examples=60, deadline=None)
@given(
    num_tokens=st.sampled_from([1, 2, 13, 37]),
    hidden=st.sampled_from([1, 7, 16]),
    vocab=st.sampled_from([2, 31, 101]),
    masked=st.sampled_from([0.0, 0.5]),
    bias=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    cap=st.sampled_from([None, 2.0, 30.0]),
    rows=st.integers(1, 40),
    factor=st.sampled_from([1.0, -0.25, 1e-4]),
)
def test_value_and_gradients_equal_the_formula(num_tokens, hidden, vocab, masked, bias, smoothing, cap, rows, factor):
    inputs = make_inputs(num_tokens, hidden, vocab, masked, bias)
    options = {"label_smoothing": smoothing, "soft_cap": cap}
    expected = outcome(linear_cross_entropy_reference, *inputs, factor=factor, **options)
    actual = outcome(linear_cross_entropy, *inputs, factor=factor, chunk_bytes=rows * vocab * 8, **options)
    assert_same(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cap", [None, 3.0])
def test_gradient_equals_finite_differences(cap):
    hidden, weight, bias, labels = make_inputs(11, 5, 17)
    options = {"label_smoothing": 0.1, "soft_cap": cap, "chunk_bytes": 4 * 17 * 8}
    _, _, gradients = outcome(linear_cross_entropy, hidden, weight, bias, labels, **options)
    for which, tensor in enumerate((hidden, weight, bias)):
        direction = torch.randn(tensor.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(which))
        losses = []
        for step in (1e-6, -1e-6):
            moved = [hidden, weight, bias]
            moved[which] = tensor + step * direction
            losses.append(linear_cross_entropy(moved[0], moved[1], labels, bias_V=moved[2], **options)[0].item())
        slope = (losses[0] - losses[1]) / 2e-6
        assert slope == pytest.approx((gradients[which] * direction).sum().item(), rel=1e-6)


def test_fp32_equals_the_fp64_formula():
    inputs = make_inputs(257, 64, 1009)
    expected = outcome(linear_cross_entropy_reference, *inputs)
    actual = outcome(linear_cross_entropy, *(t.detach().float().requires_grad_() for t in inputs[:3]), inputs[3])
    assert actual[0].dtype == torch.float32
    assert_same(actual, expected, rtol=1e-5, atol=1e-4)


def test_bf16_operands_are_summed_in_fp32():
    low = [t.detach().to(torch.bfloat16).requires_grad_() for t in make_inputs(64, 32, 211)[:3]]
    labels = make_inputs(64, 32, 211)[3]
    expected = outcome(linear_cross_entropy_reference, *(t.detach().double().requires_grad_() for t in low), labels)
    loss, _, gradients = outcome(linear_cross_entropy, *low, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-2)
    for gradient, reference in zip(gradients, expected[2], strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - reference).norm() < 0.02 * reference.norm()


def test_autocast_keeps_fp32_weights_and_gradients():
    hidden, weight, _, labels = make_inputs(32, 16, 101, dtype=torch.float32, bias=False)
    expected = outcome(linear_cross_entropy, hidden, weight, None, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = outcome(linear_cross_entropy, hidden, weight, None, labels)
    assert actual[2][1].dtype == torch.float32
    assert actual[0].item() != expected[0].item()
    assert actual[0].item() == pytest.approx(expected[0].item(), rel=2e-2)


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_frozen_inputs_get_no_gradient(frozen):
    hidden, weight, bias, labels = make_inputs()
    (weight if frozen == "weight" else hidden).requires_grad_(False)
    expected = outcome(linear_cross_entropy_reference, hidden, weight, bias, labels)
    assert_same(outcome(linear_cross_entropy, hidden, weight, bias, labels), expected, rtol=1e-10, atol=1e-12)


def test_no_supervised_token_gives_zero_loss_and_gradients():
    hidden, weight, bias, labels = make_inputs()
    loss, correct, gradients = outcome(linear_cross_entropy, hidden, weight, bias, torch.full_like(labels, -100))
    assert loss.item() == 0.0
    assert correct == 0
    assert all(g is not None and g.abs().max() == 0 for g in gradients)


def test_masked_rows_are_not_computed():
    hidden, weight, bias, labels = make_inputs()
    poisoned = hidden.detach().clone()
    poisoned[labels == -100] = float("nan")
    expected = outcome(linear_cross_entropy, hidden, weight, bias, labels)
    actual = outcome(linear_cross_entropy, poisoned.requires_grad_(), weight, bias, labels)
    assert actual[0] == expected[0]
    assert actual[2][0][labels == -100].abs().max() == 0


def test_large_logits_do_not_overflow():
    hidden, weight, bias, labels = make_inputs(dtype=torch.float32)
    with torch.no_grad():
        hidden *= 1e4
    loss, _, gradients = outcome(linear_cross_entropy, hidden, weight, bias, labels)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_inputs_are_not_overwritten():
    inputs = make_inputs()
    before = [t.detach().clone() for t in inputs]
    loss, _ = linear_cross_entropy(*inputs[:2], inputs[3], bias_V=inputs[2], soft_cap=5.0, label_smoothing=0.1)
    (loss * 0.5).backward()
    assert all(torch.equal(t, b) for t, b in zip(inputs, before, strict=True))


def test_a_second_backward_raises():
    hidden, weight, bias, labels = make_inputs()
    loss, _ = linear_cross_entropy(hidden, weight, labels, bias_V=bias)
    (0.5 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        (0.5 * loss).backward()


def test_token_losses_add_up_to_the_sum():
    hidden, weight, bias, labels = make_inputs()
    loss, correct = linear_cross_entropy(hidden, weight, labels, bias_V=bias, soft_cap=4.0)
    loss_T, correct_T = token_losses(hidden, weight, labels, bias_V=bias, soft_cap=4.0, chunk_bytes=5 * 101 * 8)
    assert not loss_T.requires_grad
    assert loss_T.sum().item() == pytest.approx(loss.item(), rel=1e-12)
    assert (loss_T[labels == -100] == 0).all()
    assert (loss_T[labels != -100] > 0).all()
    assert int(correct_T.sum()) == int(correct)
    assert not correct_T[labels == -100].any()


PEAK = """
import re, sys, torch
from tunesmith.kernels import linear_cross_entropy as module
torch.manual_seed(0)
hidden, weight = torch.randn(1024, 64, requires_grad=True), torch.randn(49157, 64, requires_grad=True)
labels = torch.randint(0, 49157, (1024,))
module.linear_cross_entropy(hidden[:8], weight, labels[:8])[0].backward()
# Not getrusage: a child process inherits its parent's peak there.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before = peak()
function = getattr(module, sys.argv[1])
function(hidden, weight, labels)[0].backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_peak_memory_is_below_a_quarter_of_materialized_logits():
    peaks = {}
    for name in ("linear_cross_entropy", "linear_cross_entropy_reference"):
        result = subprocess.run([sys.executable, "-c", PEAK, name], capture_output=True, text=True, check=True)
        peaks[name] = int(result.stdout)
    logits_bytes = 1024 * 49157 * 4
    assert peaks["linear_cross_entropy_reference"] > 2 * logits_bytes
    assert peaks["linear_cross_entropy"] < 0.25 * peaks["linear_cross_entropy_reference"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_rows_that_are_trained_alone_replace_the_heads_and_have_its_gradient(cap, bias):
    """The whole head with these rows in it, and the rows of its gradient."""
    hidden, weight, bias_V, labels = make_inputs(bias=bias)
    rows = torch.tensor([3, 50, 100])
    values = torch.randn(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = weight.detach().index_copy(0, rows, values).requires_grad_()
    options = {"label_smoothing": 0.1, "soft_cap": cap, "z_loss": 1e-3}
    expected = outcome(linear_cross_entropy, hidden, whole, bias_V, labels, factor=0.5, **options)
    for function in (linear_cross_entropy, linear_cross_entropy_reference):
        trained = TrainedRows(rows, values.clone().requires_grad_())
        chunks = {"chunk_bytes": 5 * 101 * 8} if function is linear_cross_entropy else {}
        frozen = weight.detach()
        actual = outcome(function, hidden, frozen, bias_V, labels, factor=0.5, trained=trained, **options, **chunks)
        assert actual[2][1] is None
        torch.testing.assert_close(trained.values_KH.grad, expected[2][1][rows], rtol=1e-10, atol=1e-12)
        assert_same((*actual[:2], actual[2][::2]), (*expected[:2], expected[2][::2]), rtol=1e-10, atol=1e-12)
        assert torch.equal(frozen, weight)

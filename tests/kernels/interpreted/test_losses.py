"""Cross-entropy, with and without its head, against fp64."""

import pytest
import torch
from against import DEVICE, RELATIVE, assert_near, drawn

from tunesmith.kernels import cross_entropy, linear_cross_entropy

OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"soft_cap": 3.0},
    {"z_loss": 1e-2},
    {"label_smoothing": 0.2, "soft_cap": 5.0, "z_loss": 1e-2},
]


def labels_of(num_tokens, vocab, masked=True):
    labels = torch.randint(0, vocab, (num_tokens,), generator=torch.Generator("cpu").manual_seed(4), device="cpu").to(
        DEVICE
    )
    if masked:
        labels[1::3] = -100
    return labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("num_tokens", "vocab"), [(1, 7), (13, 101), (5, 1031)])
def test_cross_entropy(num_tokens, vocab, options, dtype, monkeypatch):
    monkeypatch.setattr(cross_entropy, "MAX_BLOCK", 256)  # several blocks per row, the last one partial
    logits, labels = drawn(num_tokens, vocab, scale=3.0, dtype=dtype), labels_of(num_tokens, vocab)
    outcomes = []
    for function, leaf in (
        (cross_entropy.cross_entropy_triton, logits.clone()),
        (cross_entropy.cross_entropy, logits.double()),
    ):
        before = leaf.clone()
        loss, correct = function(leaf.requires_grad_(), labels, **options)
        (0.3 * loss).backward()
        assert torch.equal(leaf, before)
        outcomes.append((loss.detach(), int(correct), leaf.grad))
    (loss, correct, gradient), (expected_loss, expected_correct, expected_gradient) = outcomes
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5, abs=1e-6)
    assert correct == expected_correct
    assert gradient.dtype == dtype
    assert_near(gradient, expected_gradient, RELATIVE[dtype])
    assert gradient[labels == -100].abs().sum() == 0


def test_cross_entropy_of_strided_rows_and_large_logits():
    wide, labels = drawn(7, 300, scale=1e4), labels_of(7, 101)
    leaf = wide.clone().requires_grad_()
    loss, _ = cross_entropy.cross_entropy_triton(leaf[:, 5:106], labels)
    loss.backward()
    expected = wide.double().requires_grad_()
    cross_entropy.cross_entropy(expected[:, 5:106], labels)[0].backward()
    assert torch.isfinite(loss)
    assert_near(leaf.grad, expected.grad, 1e-5)


@pytest.mark.parametrize("frozen_head", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("num_tokens", "hidden", "vocab"), [(1, 1, 2), (23, 16, 101)])
def test_linear_cross_entropy(num_tokens, hidden, vocab, options, bias, frozen_head):
    tensors = [drawn(num_tokens, hidden), drawn(vocab, hidden, seed=1), drawn(vocab, seed=2) if bias else None]
    labels = labels_of(num_tokens, vocab)
    outcomes = []
    for name, dtype in (
        ("linear_cross_entropy_triton", torch.float32),
        ("linear_cross_entropy_reference", torch.float64),
    ):
        x, w, b = (None if t is None else t.to(dtype, copy=True).requires_grad_() for t in tensors)
        if frozen_head:
            w.requires_grad_(False)
        chunks = {"chunk_bytes": 5 * vocab * 4} if dtype == torch.float32 else {}
        loss, correct = getattr(linear_cross_entropy, name)(x, w, labels, bias_V=b, **options, **chunks)
        (0.3 * loss).backward()
        outcomes.append((loss.detach(), int(correct), [t.grad for t in (x, w, b) if t is not None]))
    (loss, correct, gradients), (expected_loss, expected_correct, expected_gradients) = outcomes
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert correct == expected_correct
    for actual, expected in zip(gradients, expected_gradients, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            assert_near(actual, expected, 1e-5)


def test_linear_cross_entropy_in_bf16_is_within_rounding():
    hidden, weight = drawn(23, 16, dtype=torch.bfloat16), drawn(101, 16, seed=1, dtype=torch.bfloat16)
    labels = labels_of(23, 101)
    leaves = [t.clone().requires_grad_() for t in (hidden, weight)]
    loss, _ = linear_cross_entropy.linear_cross_entropy_triton(*leaves, labels, chunk_bytes=5 * 101 * 2)
    loss.backward()
    wide = [t.double().requires_grad_() for t in (hidden, weight)]
    expected, _ = linear_cross_entropy.linear_cross_entropy_reference(*wide, labels)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    for actual_leaf, expected_leaf in zip(leaves, wide, strict=True):
        assert_near(actual_leaf.grad, expected_leaf.grad, 2e-2)


def test_token_losses_for_evaluation():
    hidden, weight, labels = drawn(13, 8), drawn(101, 8, seed=1), labels_of(13, 101)
    loss_T, correct_T = linear_cross_entropy.token_losses(
        hidden, weight, labels, soft_cap=4.0, fused=True, chunk_bytes=5 * 404
    )
    expected, correct = linear_cross_entropy.linear_cross_entropy_reference(
        hidden.double(), weight.double(), labels, soft_cap=4.0
    )
    assert loss_T.sum().item() == pytest.approx(expected.item(), rel=1e-5)
    assert int(correct_T.sum()) == int(correct)


def test_linear_cross_entropy_with_rows_that_are_trained_alone():
    hidden, weight, labels, rows = drawn(23, 16), drawn(101, 16, seed=1), labels_of(23, 101), torch.tensor([0, 7, 100])
    outcomes = []
    for name, dtype in (
        ("linear_cross_entropy_triton", torch.float32),
        ("linear_cross_entropy_reference", torch.float64),
    ):
        x, values = (t.to(dtype, copy=True).requires_grad_() for t in (hidden, drawn(3, 16, seed=2)))
        trained = linear_cross_entropy.TrainedRows(rows, values)
        loss, _ = getattr(linear_cross_entropy, name)(x, weight.to(dtype), labels, trained=trained)
        loss.backward()
        outcomes.append((loss.item(), x.grad, values.grad))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-5)
    for actual, expected in zip(outcomes[0][1:], outcomes[1][1:], strict=True):
        assert_near(actual, expected, 1e-5)

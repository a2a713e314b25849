"""References of the small operations compared with transformers' modules and with their formulas in fp64."""

import pytest
import torch
from torch.autograd import gradcheck
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from tunesmith.kernels.cross_entropy import cross_entropy
from tunesmith.kernels.rms_norm import rms_norm
from tunesmith.kernels.rope import rope
from tunesmith.kernels.swiglu import swiglu


def drawn(*shape, dtype=torch.float64, seed=0):
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_equals_llama_and_gemma(dtype):
    hidden, weight = drawn(7, 12, dtype=dtype), drawn(12, dtype=dtype, seed=1)
    llama, gemma = LlamaRMSNorm(12, eps=1e-5).to(dtype), GemmaRMSNorm(12, eps=1e-5).to(dtype)
    with torch.no_grad():
        llama.weight.copy_(weight)
        gemma.weight.copy_(weight)
    assert torch.equal(rms_norm(hidden, weight, 1e-5), llama(hidden))
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2  # Gemma rounds once, after the weight
    torch.testing.assert_close(
        rms_norm(hidden, weight, 1e-5, weight_offset=1.0), gemma(hidden), rtol=tolerance, atol=tolerance
    )


def test_rms_norm_in_fp64():
    hidden, weight = drawn(5, 6), drawn(6, seed=1)
    expected = weight * hidden / (hidden.pow(2).sum(-1, keepdim=True) / 6 + 1e-5).sqrt()
    torch.testing.assert_close(rms_norm(hidden, weight, 1e-5), expected)
    assert gradcheck(lambda h, w: rms_norm(h, w, 1e-5), (hidden, weight))


def test_rope_equals_llama_and_depends_on_relative_positions():
    query, key = drawn(1, 4, 9, 8), drawn(1, 2, 9, 8, seed=1)
    angles = torch.arange(9, dtype=torch.float64)[:, None] / 100 ** (torch.arange(0, 8, 2) / 8)
    cos, sin = torch.cat([angles, angles], -1).cos()[None], torch.cat([angles, angles], -1).sin()[None]
    rotated = rope(query, key, cos, sin)
    for actual, expected in zip(rotated, apply_rotary_pos_emb(query, key, cos, sin), strict=True):
        assert torch.equal(actual, expected)
    assert gradcheck(lambda q, k: rope(q, k, cos, sin), (query, key))
    same = query.detach()[:, :1, :1].expand(-1, -1, 9, -1)
    turned, _ = rope(same, same, cos, sin)
    products = turned[0, 0] @ turned[0, 0].T
    assert products[0, 3].item() == pytest.approx(products[5, 8].item(), rel=1e-12)
    assert products[0, 3].item() != pytest.approx(products[0, 4].item(), rel=1e-3)


def test_swiglu_in_fp64():
    gate, up = drawn(5, 6), drawn(5, 6, seed=1)
    torch.testing.assert_close(swiglu(gate, up), gate / (1 + torch.exp(-gate)) * up)
    assert gradcheck(swiglu, (gate, up))


@pytest.mark.parametrize("cap", [None, 3.0])
def test_cross_entropy_in_fp64(cap):
    logits = drawn(9, 11)
    labels = torch.tensor([3, -100, 0, 10, 5, -100, 5, 1, 2])
    capped = logits if cap is None else cap * torch.tanh(logits / cap)
    rows = labels != -100
    smooth = 0.9 * -capped.log_softmax(-1)[rows, labels[rows]] + 0.1 * -capped.log_softmax(-1)[rows].mean(-1)
    loss, correct = cross_entropy(logits, labels, label_smoothing=0.1, soft_cap=cap)
    assert loss.item() == pytest.approx(smooth.sum().item(), rel=1e-12)
    assert int(correct) == int((logits.argmax(-1) == labels).sum())
    assert gradcheck(lambda x: cross_entropy(x, labels, label_smoothing=0.1, soft_cap=cap)[0], (logits,))


def test_cross_entropy_of_bf16_logits_is_summed_in_fp32():
    logits = drawn(200, 50, dtype=torch.bfloat16)
    labels = torch.randint(0, 50, (200,), generator=torch.Generator().manual_seed(2))
    loss, _ = cross_entropy(logits, labels)
    expected, _ = cross_entropy(logits.detach().double(), labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)

"""One variable-length attention per layer, with the CUDA operators computed on the CPU (flash_on_cpu.py)."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.kernels.flash_on_cpu import flash_on_cpu
from tunesmith.kernels import dispatch, varlen_attention
from tunesmith.kernels.packed_attention import packed_attention_reference, packed_attention_varlen
from tunesmith.kernels.varlen_attention import Documents, unsupported_reason
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import recompute_activations


def drawn_case(number):
    """Inputs of a random packing: lengths (some 1, some 0 at the end), heads, groups, head size, scale and window."""
    draw = random.Random(number)
    lengths = [draw.choice((1, 2, draw.randrange(1, 30))) for _ in range(draw.randrange(1, 7))]
    lengths += [0] * draw.randrange(2)
    groups, size = draw.choice((1, 2, 3)), draw.choice((8, 16))
    heads = groups * draw.choice((1, 2, 3))
    options = {"scale": draw.choice((None, 0.3)), "causal": draw.random() < 0.9}
    if options["causal"] and draw.random() < 0.5:
        options["window"] = draw.choice((1, 2, 5, 12, 40))
    generator = torch.Generator().manual_seed(number)
    inputs = [
        torch.randn(1, sum(lengths), n, size, generator=generator).transpose(1, 2) for n in (heads, groups, groups)
    ]
    return inputs, Documents(lengths), options


def outcome(function, inputs, documents, **options):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    output = function(*leaves, documents, **options)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output.backward(direction.to(output.dtype))
    return [output.detach(), *(t.grad for t in leaves)]


def largest_difference(number):
    """Relative to the reference in fp64, over output and gradients."""
    inputs, documents, options = drawn_case(number)
    expected = outcome(packed_attention_reference, [t.double() for t in inputs], documents, **options)
    with flash_on_cpu() as calls:
        actual = outcome(packed_attention_varlen, inputs, documents, **options)
    assert calls == {"forward": 1, "backward": 1}
    # The gradients of queries and keys are zero where each document has one visible token: relative to the output then.
    size = expected[0].norm()
    assert size > 1e-3
    return max(float((a - e).norm() / max(e.norm(), size)) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_random_packings_equal_the_dense_mask(first):
    assert max(map(largest_difference, range(first, first + 50))) < 1e-5


@pytest.mark.parametrize("planted", ["window", "offsets"])
def test_an_error_of_one_in_window_or_offset_is_found(planted, monkeypatch):
    if planted == "window":
        right = packed_attention_varlen
        monkeypatch.setitem(
            globals(),
            "packed_attention_varlen",
            lambda *a, window=None, **o: right(*a, window=window and window + 1, **o),
        )
    else:
        offsets = Documents.offsets

        def shifted(self, device):
            moved = offsets(self, device).clone()
            moved[1:-1] += 1 if len(moved) > 2 and int(moved[-1]) > int(moved[-2]) + 1 else 0
            return moved

        monkeypatch.setattr(Documents, "offsets", shifted)
        monkeypatch.setattr("tests.kernels.flash_on_cpu.require", lambda *_: None)
    assert max(map(largest_difference, range(20))) > 1e-2


def test_torch_without_the_public_entry_gives_the_same(monkeypatch):
    inputs, documents, options = drawn_case(3)
    with flash_on_cpu():
        public = outcome(packed_attention_varlen, inputs, documents, **options)
        monkeypatch.setattr(varlen_attention, "_has_windows_and_groups", lambda: False)
        operator = outcome(packed_attention_varlen, inputs, documents, **options)
    for one, other in zip(public, operator, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_dropout_reaches_the_operator():
    inputs, documents, _ = drawn_case(3)
    with flash_on_cpu():
        torch.manual_seed(0)
        kept = {bool(packed_attention_varlen(*inputs, documents, dropout=0.5).any()) for _ in range(20)}
    assert kept == {True, False}


def test_autocast_decides_the_dtype():
    inputs, documents, _ = drawn_case(3)
    with flash_on_cpu(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed_attention_varlen(*inputs, documents).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability", "reason"),
    [
        (torch.bfloat16, 128, (9, 0), None),
        (torch.float16, 256, (8, 0), None),
        (torch.bfloat16, 128, None, "needs a CUDA device"),
        (torch.float32, 128, (9, 0), "not float32"),
        (torch.float16, 128, (7, 5), "this card has 7.5"),
        (torch.bfloat16, 288, (9, 0), "up to 256"),
        (torch.bfloat16, 36, (9, 0), "multiples of 8"),
    ],
)
def test_unsupported_attention_is_named(dtype, head_size, capability, reason):
    actual = unsupported_reason(dtype, head_size, capability)
    assert actual is None if reason is None else reason in actual


@pytest.mark.parametrize("recomputed", [False, True])
def test_number_of_attention_calls(recomputed, monkeypatch):
    entries = dispatch.TABLE["packed_attention"]
    accepting = dispatch.Implementation(entries[0].name, entries[0].function, lambda _query: True)
    monkeypatch.setitem(dispatch.TABLE, "packed_attention", [accepting, entries[-1]])
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, use_cache=False
    )
    loss = CausalLoss(LlamaForCausalLM(config))
    if recomputed:
        recompute_activations(loss.model)
    loss.train()
    tokens = torch.arange(12)
    lengths = [5, 1, 6]
    positions = torch.cat([torch.arange(n) for n in lengths])
    with flash_on_cpu() as calls:
        value = loss(tokens, tokens, positions, lengths).loss_sum
        assert calls == {"forward": 3}
        value.backward()
    assert calls == {"forward": 6 if recomputed else 3, "backward": 3}

"""The CPU forms in bf16, compared with fp64 on the same inputs and with plain PyTorch in bf16.

bf16 has 8 significant bits: a rounding changes a value by at most 2^-9 of it. Limits are the number of roundings on the
way to a result times this, by the norm of each output and gradient.
"""

import pytest
import torch

from tunesmith.kernels import (
    linear_cross_entropy,
    lora_block,
    lora_linear,
    matmul_attention,
    rms_norm,
    rope,
    swiglu,
    weight_gradient,
)
from tunesmith.kernels.dispatch import TABLE, Kernels
from tunesmith.kernels.lora_block import Adapted
from tunesmith.kernels.matmul_attention import packed_attention_matmul
from tunesmith.kernels.packed_attention import packed_attention, packed_attention_reference
from tunesmith.kernels.varlen_attention import Documents

ROUNDING = 2.0**-9
BF16 = torch.bfloat16


def drawn(*shape, seed=0, dtype=BF16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def outcome(function, inputs, frozen=()):
    leaves = [t.detach().clone().requires_grad_(i not in frozen) for i, t in enumerate(inputs)]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(outputs, [drawn(*o.shape, seed=9 + i).to(o.dtype) for i, o in enumerate(outputs)])
    assert all(torch.equal(leaf, t) for leaf, t in zip(leaves, inputs, strict=True))
    return [*(o.detach() for o in outputs), *(t.grad for i, t in enumerate(leaves) if i not in frozen)]


def errors(function, exact, inputs, frozen=()):
    """Relative errors by norm against fp64."""
    expected = outcome(exact, [t.double() for t in inputs], frozen)
    actual = outcome(function, inputs, frozen)
    assert all(e.norm() > 1e-3 for e in expected)
    return [((a.double() - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)]


def assert_within(roundings, fast, plain, inputs, frozen=(), exact=None):
    """Within the rounding errors, and at most twice (plus one rounding) as far from fp64 as plain PyTorch in bf16."""
    ours, plain_errors = (errors(function, exact or plain, inputs, frozen) for function in (fast, plain))
    for our_error, plain_error in zip(ours, plain_errors, strict=True):
        assert our_error <= roundings * ROUNDING
        assert our_error <= 2 * plain_error + ROUNDING


@pytest.mark.parametrize("weight_type", [BF16, torch.float32])
def test_rms_norm_is_rounded_once(weight_type):
    inputs = [drawn(37, 128), drawn(128, seed=1, dtype=weight_type)]
    assert_within(2, lambda x, w: rms_norm.rms_norm_cpu(x, w, 1e-5), lambda x, w: rms_norm.rms_norm(x, w, 1e-5), inputs)


def test_under_autocast_a_norm_of_fp32_states_feeds_bf16_products():
    x, w = drawn(5, 16, dtype=torch.float32).requires_grad_(), drawn(16, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", BF16):
        normed = Kernels().choose("rms_norm", x)(x, w, 1e-5)
    assert normed.dtype == BF16
    normed.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_small_operations():
    query, key = drawn(1, 9, 4, 8).transpose(1, 2), drawn(1, 9, 2, 8, seed=1).transpose(1, 2)
    angle = drawn(1, 9, 4, seed=2, dtype=torch.float32).repeat(1, 1, 2) * 3
    tables = [angle.cos().to(BF16), angle.sin().to(BF16)]
    assert_within(4, rope.rope_cpu, rope.rope, [query, key, *tables], frozen=(2, 3))
    assert_within(5, swiglu.swiglu_cpu, swiglu.swiglu, [drawn(7, 30), drawn(7, 30, seed=1)])
    assert_within(5, swiglu.swiglu_packed_cpu, swiglu.swiglu_packed, [drawn(7, 60)])
    packed = [drawn(1, 9, 8 * 8), *tables]
    assert_within(
        4, lambda *t: rope.rope_packed_cpu(*t, 4, 2), lambda *t: rope.rope_packed(*t, 4, 2), packed, frozen=(1, 2)
    )


def adapted(num_inputs, num_outputs, rank, seed):
    """A frozen weight in bf16 and its adapter in bf16 values."""
    return [
        drawn(num_outputs, num_inputs, seed=seed) * num_inputs**-0.5,
        drawn(rank, num_inputs, seed=seed + 1) * num_inputs**-0.5,
        drawn(num_outputs, rank, seed=seed + 2) * rank**-0.5,
    ]


@pytest.mark.parametrize("part", [512, 7])
def test_block_halves(monkeypatch, part):
    monkeypatch.setattr(lora_block, "PASS_TOKENS", part)

    def normed(function):
        def run(x, norm, w1, a1, b1, w2, a2, b2):
            return function(x, norm, 1e-5, 0.0, [Adapted(w1, None, a1, b1, 0.5), Adapted(w2, None, a2, b2, 2.0)])

        return run

    inputs = [drawn(2, 13, 64), drawn(64, seed=1), *adapted(64, 40, 4, 10), *adapted(64, 24, 3, 20)]
    pair = normed(lora_block.norm_lora_linears), normed(lora_block.norm_lora_linears_reference)
    assert_within(6, *pair, inputs, frozen=(1, 2, 5))
    inputs = [drawn(2, 13, 64), drawn(2, 13, 64, seed=1), *adapted(64, 40, 4, 10)]
    pair = [
        lambda gate, up, w, a, b, f=f: f(gate, up, Adapted(w, None, a, b, 0.5))
        for f in (lora_block.gated_lora_linear, lora_block.gated_lora_linear_reference)
    ]
    assert_within(6, *pair, inputs, frozen=(2,))
    inputs = [drawn(2, 13, 64), *adapted(64, 40, 4, 10)]
    pair = [
        lambda x, w, a, b, f=f: f(x, w, None, a, b, 0.5)
        for f in (lora_linear.lora_linear, lora_linear.lora_linear_reference)
    ]
    assert_within(6, *pair, inputs, frozen=(1,))


def test_gradients_of_fp32_adapters_are_summed_over_parts_in_fp32(monkeypatch):
    x, norm, w = drawn(4096, 32), drawn(32, seed=1), drawn(24, 32, seed=2)
    a, b = (drawn(*shape, seed=3, dtype=torch.float32).requires_grad_() for shape in ((2, 32), (24, 2)))
    gradients = []
    for part in (8, 4096):
        monkeypatch.setattr(lora_block, "PASS_TOKENS", part)
        (y,) = lora_block.norm_lora_linears(x, norm, 1e-5, 0.0, [Adapted(w, None, a, b, 0.5)])
        gradients.append(torch.autograd.grad(y, (a, b), drawn(*y.shape, seed=4)))
    for in_parts, at_once in zip(*gradients, strict=True):
        assert in_parts.dtype == torch.float32
        # 512 sums in bf16 would be off by several percent.
        assert (in_parts - at_once).norm() <= 2 * ROUNDING * at_once.norm()


@pytest.mark.parametrize("options", [{}, {"soft_cap": 3.0, "label_smoothing": 0.1, "z_loss": 1e-3}])
def test_the_head_in_a_few_rows_at_a_time_equals_all_rows_at_once(monkeypatch, options):
    """Logits are rounded by the product, and dlogits for the next ones, whatever happens between."""
    labels = torch.arange(20) * 31
    labels[3] = -100
    leaves = [drawn(20, 8).requires_grad_(), drawn(60_000, 8, seed=1).requires_grad_()]  # 8 rows of fp32 fit 2 MiB
    results = []
    for kind in (linear_cross_entropy.NarrowChunks, linear_cross_entropy.Chunks):
        monkeypatch.setattr(linear_cross_entropy, "_kind", lambda *_, kind=kind: kind)
        loss, correct = linear_cross_entropy.linear_cross_entropy(*leaves, labels, **options)
        results.append([loss, correct, *torch.autograd.grad(loss, leaves)])
        scores = linear_cross_entropy.token_losses(*(leaf.detach() for leaf in leaves), labels)
        results[-1] += scores
    assert results[0][0] > 100
    for narrow, wide in zip(*results, strict=True):
        assert torch.allclose(narrow.float(), wide.float(), rtol=ROUNDING, atol=1e-6)
    assert linear_cross_entropy.NarrowChunks.logits_dtype == BF16


# --- trained weights


def test_a_trained_linear_reads_a_bf16_copy_and_sums_its_gradient_in_fp32():
    weight = torch.nn.Parameter(drawn(24, 32, dtype=torch.float32))
    bias = torch.nn.Parameter(drawn(24, seed=1, dtype=torch.float32))
    x = drawn(40, 32, seed=2, dtype=torch.float32).requires_grad_()
    function = Kernels().choose("trained_linear", weight)
    for _ in range(2):
        with torch.autocast("cpu", BF16):
            assert Kernels().chosen("trained_linear", weight).function is weight_gradient.trained_linear_adding
            y = function(weight, bias, x)
        assert y.dtype == BF16
        y.backward(drawn(*y.shape, seed=3))
    wide = [t.detach().double().requires_grad_() for t in (weight, bias, x)]
    exact = torch.nn.functional.linear(wide[2], *wide[:2])
    exact.backward(2 * drawn(*y.shape, seed=3).double())
    assert (y.double() - exact).norm() <= 3 * ROUNDING * exact.norm()
    for narrow, expected in zip((weight, bias, x), wide, strict=True):
        assert narrow.grad is not None
        assert expected.grad is not None
        assert narrow.grad.dtype == torch.float32
        assert (narrow.grad.double() - expected.grad).norm() <= 3 * ROUNDING * expected.grad.norm()


# --- attention


def attention_inputs(num_tokens, heads=(6, 2), size=16, seed=0):
    counts = (heads[0], heads[1], heads[1])
    return [drawn(1, num_tokens, n, size, seed=seed + i).transpose(1, 2) for i, n in enumerate(counts)]


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"window": 40}, {"causal": False}, {"scale": 0.3}])
@pytest.mark.parametrize("heads", [(6, 2), (3, 3), (4, 1)])
def test_attention_of_random_packings(monkeypatch, options, heads):
    monkeypatch.setattr(matmul_attention, "BLOCK", 16)  # several blocks of queries
    generator = torch.Generator().manual_seed(len(options) + heads[0])
    for seed in range(6):
        lengths = torch.randint(1, 60, (int(torch.randint(1, 6, (), generator=generator)),), generator=generator)
        documents = Documents([*lengths.tolist(), 20])
        inputs = attention_inputs(documents.num_tokens, heads, seed=seed)
        functions = [
            lambda q, k, v, f=f, d=documents: f(q, k, v, d, **options)
            for f in (packed_attention_matmul, packed_attention, packed_attention_reference)
        ]
        assert_within(6, *functions[:2], inputs, exact=functions[2])


def test_a_planted_fault_in_window_or_document_is_found():
    documents, inputs = Documents([30, 50]), attention_inputs(80)

    def called(documents, **options):
        return lambda q, k, v: packed_attention_matmul(q, k, v, documents, **options)

    def exact(q, k, v):
        return packed_attention_reference(q, k, v, documents, window=9)

    assert max(errors(called(documents, window=9), exact, inputs)) <= 6 * ROUNDING
    for wrong in (called(documents, window=8), called(documents, window=10), called(Documents([31, 49]), window=9)):
        assert min(errors(wrong, exact, inputs)) > 12 * ROUNDING


def test_a_packed_document_has_exactly_the_attention_that_it_has_alone():
    lengths = [5, 200, 1, 130]
    inputs = attention_inputs(sum(lengths))
    packed = outcome(lambda q, k, v: packed_attention_matmul(q, k, v, Documents(lengths)), inputs)
    gradient = drawn(*packed[0].shape, seed=9)
    parts = zip(*(t.split(lengths, 2) for t in (*inputs, gradient, *packed)), strict=True)
    for length, (q, k, v, direction, output, *gradients) in zip(lengths, parts, strict=True):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        alone = packed_attention_matmul(*leaves, Documents([length]))
        assert torch.equal(alone, output)
        for expected, actual in zip(torch.autograd.grad(alone, leaves, direction), gradients, strict=True):
            assert torch.equal(expected, actual)


def test_attention_with_dropout_is_torchs():
    inputs, documents = attention_inputs(20), Documents([20])
    results = []
    for function in (packed_attention_matmul, packed_attention):
        torch.manual_seed(0)
        results.append(function(*inputs, documents, dropout=0.5))
    assert torch.equal(*results)


def test_the_bf16_forms_are_chosen_on_a_cpu_only():
    names = ("rms_norm", "rope", "swiglu", "norm_lora_linears", "gated_lora_linear", "packed_attention")
    for name in names:
        for dtype in (BF16, torch.float32):
            tensor = torch.empty(1, 2, 8, 8, dtype=dtype)
            accepted = [entry for entry in TABLE[name][:-1] if entry.accepts(tensor)]
            assert bool(accepted) == (name != "packed_attention" or dtype == BF16)
            assert not any(entry.accepts(tensor.to(torch.float16)) for entry in accepted)
            assert not any(entry.accepts(tensor.to("meta")) for entry in accepted)
    with torch.autocast("cpu", BF16):  # a block in fp32 would not compute in autocast's dtype
        chosen = Kernels().chosen("norm_lora_linears", torch.empty(2, 8))
        assert chosen is TABLE["norm_lora_linears"][-1]

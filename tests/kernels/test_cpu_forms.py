"""CPU implementations compared with the references in fp64: values, gradients, unmodified inputs, saved memory."""

import pytest
import torch
from torch.autograd import gradcheck

from tunesmith.kernels import (
    cross_entropy,
    layer_norm,
    lora_block,
    lora_linear,
    nf4,
    rms_norm,
    rope,
    swiglu,
    weight_gradient,
)
from tunesmith.kernels.geglu import geglu
from tunesmith.kernels.language import equal_parts
from tunesmith.kernels.lora_block import Adapted


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def outcome(function, inputs, frozen=()):
    leaves = [t.detach().clone().requires_grad_(i not in frozen) for i, t in enumerate(inputs)]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    before = [t.detach().clone() for t in leaves]
    grads = [drawn(*o.shape, seed=9 + i, dtype=torch.float64).to(o.dtype) for i, o in enumerate(outputs)]
    torch.autograd.backward(outputs, grads)
    assert all(torch.equal(t, b) for t, b in zip(leaves, before, strict=True))
    return [*(o.detach() for o in outputs), *(t.grad for i, t in enumerate(leaves) if i not in frozen)]


def assert_matches(fast, plain, inputs, frozen=()):
    for actual, expected in zip(
        outcome(fast, inputs, frozen), outcome(plain, [t.double() for t in inputs], frozen), strict=True
    ):
        assert expected.norm() > 1e-3
        assert (actual.double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("shape", [(1, 7), (1, 13, 31), (37, 128)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("frozen", [(), (1,)])
def test_rms_norm(shape, offset, frozen):
    inputs = [drawn(*shape), drawn(shape[-1], seed=1)]
    assert_matches(
        lambda x, w: rms_norm.rms_norm_cpu(x, w, 1e-5, weight_offset=offset),
        lambda x, w: rms_norm.rms_norm(x, w, 1e-5, weight_offset=offset),
        inputs,
        frozen,
    )


@pytest.mark.parametrize("columns", [slice(None), slice(None, None, 2)])
def test_swiglu_and_rope_with_strided_inputs(columns):
    gate, up = drawn(2, 7, 30)[..., columns], drawn(2, 7, 30, seed=1)[..., columns]
    assert_matches(swiglu.swiglu_cpu, swiglu.swiglu, [gate, up])
    query, key = drawn(1, 9, 4, 8).transpose(1, 2), drawn(1, 9, 2, 8, seed=1).transpose(1, 2)
    angle = torch.arange(9, dtype=torch.float64)[None, :, None] * torch.tensor(
        [1.0, 0.3, 0.1, 0.03, 1.1, 0.2, 0.3, 0.5]
    )
    tables = angle.cos().float(), angle.sin().float()
    assert_matches(rope.rope_cpu, rope.rope, [query, key, *tables], frozen=(2, 3))


@pytest.mark.parametrize("rotary", [8, 6])
def test_packed_products(rotary):
    assert_matches(swiglu.swiglu_packed_cpu, swiglu.swiglu_packed, [drawn(2, 7, 30)])
    qkv, angle = drawn(1, 9, 8 * 8), drawn(1, 9, rotary // 2, seed=1).repeat(1, 1, 2)
    inputs = [qkv, angle.cos(), angle.sin()]

    def called(function):
        return lambda *tensors: function(*tensors, 4, 2)

    assert_matches(called(rope.rope_packed_cpu), called(rope.rope_packed), inputs, frozen=(1, 2))
    leaf = qkv.clone().requires_grad_()
    _, _, value = rope.rope_packed_cpu(leaf, *inputs[1:], 4, 2)
    assert value.untyped_storage().nbytes() == value.nbytes  # it does not keep the packed projection alive


def adapted(num_inputs, num_outputs, rank, seed, bias=False):
    return [
        drawn(num_outputs, num_inputs, seed=seed),
        *([drawn(num_outputs, seed=seed + 3)] if bias else []),
        drawn(rank, num_inputs, seed=seed + 1),
        drawn(num_outputs, rank, seed=seed + 2),
    ]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 6), (2, 13, 31)])
def test_lora_linear(shape, bias):
    inputs = [drawn(*shape), *adapted(shape[-1], 17, 4, 10, bias)]

    def called(function):
        return lambda x, w, *rest: function(x, w, rest[0] if bias else None, *rest[-2:], 0.7)

    frozen = (1, 2) if bias else (1,)
    assert_matches(called(lora_linear.lora_linear), called(lora_linear.lora_linear_reference), inputs, frozen)


@pytest.fixture(params=[512, 5], ids=["whole", "in_parts"])
def _parts(request, monkeypatch):
    monkeypatch.setattr(lora_block, "PASS_TOKENS", request.param)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("shape", [(1, 6), (2, 13, 31)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_and_its_linears(shape, offset):
    inputs = [drawn(*shape), drawn(shape[-1], seed=1), *adapted(shape[-1], 17, 4, 10), *adapted(shape[-1], 5, 3, 20)]

    def called(function):
        def run(x, norm, w1, a1, b1, w2, a2, b2):
            return function(x, norm, 1e-5, offset, [Adapted(w1, None, a1, b1, 0.7), Adapted(w2, None, a2, b2, 2.0)])

        return run

    fast, plain = called(lora_block.norm_lora_linears), called(lora_block.norm_lora_linears_reference)
    assert_matches(fast, plain, inputs, frozen=(1, 2, 5))
    # As for the first block, whose input requires no gradient.
    assert_matches(fast, plain, inputs, frozen=(0, 1, 2, 5))


@pytest.mark.usefixtures("_parts")
def test_gated_product_and_its_linear():
    inputs = [drawn(2, 13, 31), drawn(2, 13, 31, seed=1), *adapted(31, 17, 4, 10)]

    def called(function):
        return lambda gate, up, w, a, b: function(gate, up, Adapted(w, None, a, b, 0.7))

    fast, plain = called(lora_block.gated_lora_linear), called(lora_block.gated_lora_linear_reference)
    assert_matches(fast, plain, inputs, frozen=(2,))


def kept_bytes(function) -> int:
    """Bytes that autograd saves for the backward pass, each storage once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()
    assert kept
    del output
    return sum(kept.values())


def test_saved_activations_have_the_documented_size():
    gate, up = (drawn(64, 256, seed=i).requires_grad_() for i in range(2))
    assert kept_bytes(lambda: swiglu.swiglu_cpu(gate, up)) == 2 * gate.nbytes
    assert kept_bytes(lambda: swiglu.swiglu(gate, up)) > 2 * gate.nbytes
    norm = drawn(256, seed=3)
    assert kept_bytes(lambda: rms_norm.rms_norm_cpu(gate, norm, 1e-5)) == gate.nbytes + norm.nbytes + 64 * 4
    weight, a, b = adapted(256, 32, 4, 10)
    layer = Adapted(weight, None, a.requires_grad_(), b.requires_grad_(), 1.0)
    parameters = a.nbytes + b.nbytes
    assert kept_bytes(lambda: lora_block.gated_lora_linear(gate, up, layer)) == 2 * gate.nbytes + parameters


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 6), (2, 13, 31)])
@pytest.mark.parametrize("frozen", [(), (0,)])
def test_trained_linear_in_two_passes(shape, bias, frozen):
    """The second pass accumulates into the gradient of the first, with strided inputs, too."""
    inputs = [drawn(*shape), drawn(17, shape[-1], seed=1), *([drawn(17, seed=2)] if bias else [])]

    def called(function):
        def run(x, w, *b):
            bias = b[0] if b else None
            return function(w, bias, x), function(w, bias, x.repeat_interleave(2, -1)[..., ::2])

        return run

    assert_matches(
        called(weight_gradient.trained_linear_adding), called(weight_gradient.trained_linear), inputs, frozen
    )


@pytest.mark.parametrize("padding", [None, 3, -2])
def test_trained_embedding_in_two_passes(padding):
    tokens = torch.tensor([[3, 1, 3, 0], [5, 3, 1, 1]])

    def called(function):
        return lambda w: (function(w, padding, tokens), function(w, padding, tokens.T[:3]))

    adding, plain = called(weight_gradient.trained_embedding_adding), called(weight_gradient.trained_embedding)
    assert_matches(adding, plain, [drawn(7, 5)])


def test_the_gradient_is_accumulated_in_place():
    x, weight = drawn(4, 6), drawn(5, 6, seed=1).requires_grad_()
    weight.grad = kept = torch.ones_like(weight)
    weight_gradient.trained_linear_adding(weight, None, x).sum().backward()
    assert weight.grad is kept
    assert torch.allclose(kept, 1.0 + x.sum(0).expand(5, 6))
    with torch.no_grad():  # evaluation
        assert not weight_gradient.trained_linear_adding(weight, None, x).requires_grad
    changed = weight_gradient.trained_linear_adding(weight, None, x.requires_grad_())
    with torch.no_grad():
        weight += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed.sum().backward()


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_and_non_leaf_weights_receive_their_gradient(kind):
    x, tokens, seen = drawn(4, 6), torch.tensor([1, 1, 2]), []
    for called in (
        lambda w: weight_gradient.trained_linear_adding(w, None, x),
        lambda w: weight_gradient.trained_embedding_adding(w, None, tokens),
    ):
        weight = drawn(5, 6, seed=1).requires_grad_()
        getattr(weight, kind)(lambda _: seen.append(1))
        called(weight).sum().backward()
        leaf = drawn(5, 6, seed=1).requires_grad_()
        called(leaf * 1.0).sum().backward()  # not a leaf: autograd propagates the gradient
        assert torch.equal(leaf.grad, weight.grad)
    assert len(seen) == 2
    weight = drawn(5, 6, seed=1).requires_grad_()
    with pytest.raises(RuntimeError, match="not have been used"):  # an error, not silently zero
        torch.autograd.grad(weight_gradient.trained_linear_adding(weight, None, x.requires_grad_()).sum(), weight)


def test_references_pass_gradcheck():
    x, y, w = (drawn(4, 6, seed=i, dtype=torch.float64).requires_grad_() for i in range(3))
    norm = drawn(6, seed=4, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda a, b, c: rms_norm.add_rms_norm(a, b, c, 1e-5), (x, y, norm))
    assert gradcheck(lambda a, b: layer_norm.layer_norm(a, b, None, 1e-5), (x, norm))
    assert gradcheck(geglu, (x, y))
    a, b = drawn(2, 6, seed=5, dtype=torch.float64).requires_grad_(), drawn(4, 2, seed=6, dtype=torch.float64)
    assert gradcheck(
        lambda x, a, b: lora_linear.lora_linear_reference(x, w, None, a, b, 0.7), (x, a, b.requires_grad_())
    )


def test_custom_operations_have_meta_implementations():
    """torch.compile and torch.export require a schema and shapes without execution."""
    names = ("rms_norm", "layer_norm", "rope", "gated", "gated_packed", "cross_entropy", "nf4_dequantise")
    assert cross_entropy.cross_entropy is not None  # its module registers the operation
    assert all(hasattr(torch.ops.tunesmith, name) for name in names)
    hidden = torch.empty(5, 8, device="meta")
    normed, summed, scale = torch.ops.tunesmith.rms_norm(hidden, hidden, hidden[0], 1e-5, 0.0)
    assert (normed.shape, summed.shape, scale.shape) == ((5, 8), (5, 8), (5,))
    assert torch.ops.tunesmith.gated_packed(hidden, 0).shape == (5, 4)
    packed = torch.empty(64, 1, dtype=torch.uint8, device="meta")
    weight = nf4.Nf4(packed, torch.empty(2, device="meta"), torch.empty(16, device="meta"), (16, 8))
    assert nf4.nf4_dequantise_triton(weight, torch.bfloat16).shape == (16, 8)


def test_equal_parts_cover_every_token():
    assert equal_parts(0, lora_block.PASS_TOKENS) == []
    for num_tokens in (1, 512, 513, 2048, 2050):
        parts = equal_parts(num_tokens, lora_block.PASS_TOKENS)
        assert [token for part in parts for token in range(num_tokens)[part]] == list(range(num_tokens))
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) <= lora_block.PASS_TOKENS
        assert max(sizes) - min(sizes) <= 1

"""Norms, rotary embedding and gated activations in Triton, compared with fp64."""

import pytest
import torch
from against import assert_matches, assert_near, drawn

from tunesmith.kernels import geglu, layer_norm, rms_norm, rope, swiglu

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 7), (13, 31), (37, 128)]


def every_other(tensor):
    """The same values in a strided layout: every second column of a wider tensor."""
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(shape, dtype, offset):
    inputs = [drawn(*shape, dtype=dtype), drawn(shape[1], seed=1, dtype=dtype)]
    assert_matches(
        lambda x, w: rms_norm.rms_norm_triton(x, w, 1e-5, weight_offset=offset),
        lambda x, w: rms_norm.rms_norm(x, w, 1e-5, weight_offset=offset),
        inputs,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm(shape, dtype):
    inputs = [drawn(*shape, dtype=dtype), drawn(*shape, seed=2, dtype=dtype), drawn(shape[1], seed=1, dtype=dtype)]
    assert_matches(
        lambda x, r, w: rms_norm.add_rms_norm_triton(x, r, w, 1e-5),
        lambda x, r, w: rms_norm.add_rms_norm(x, r, w, 1e-5),
        inputs,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(shape, dtype, bias):
    inputs = [drawn(*shape, dtype=dtype), drawn(shape[1], seed=1, dtype=dtype)]
    inputs += [drawn(shape[1], seed=2, dtype=dtype)] if bias else []
    assert_matches(
        lambda x, w, b=None: layer_norm.layer_norm_triton(x, w, b, 1e-5),
        lambda x, w, b=None: layer_norm.layer_norm(x, w, b, 1e-5),
        inputs,
    )


@pytest.mark.parametrize("layout", [every_other, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)])
def test_norms_accept_any_layout(layout):
    inputs = [layout(drawn(13, 31)), drawn(31, seed=1)]
    assert not inputs[0].is_contiguous()
    assert_matches(
        lambda x, w: rms_norm.rms_norm_triton(x, w, 1e-5), lambda x, w: rms_norm.rms_norm(x, w, 1e-5), inputs
    )
    assert_matches(
        lambda x, w: layer_norm.layer_norm_triton(x, w, None, 1e-5),
        lambda x, w: layer_norm.layer_norm(x, w, None, 1e-5),
        inputs,
    )


def test_a_frozen_weight_gets_no_gradient_and_the_shape_is_kept():
    inputs = [drawn(2, 5, 12), drawn(12, seed=1)]
    assert_matches(
        lambda x, w: rms_norm.rms_norm_triton(x, w, 1e-5), lambda x, w: rms_norm.rms_norm(x, w, 1e-5), inputs, [0]
    )


def angles(batch, num_tokens, size, dtype, halves_differ=False):
    angle = torch.arange(num_tokens, dtype=torch.float64)[:, None] / 100 ** (torch.arange(0, size, 2) / size)
    both = torch.cat([angle, 1.3 * angle if halves_differ else angle], -1).expand(batch, -1, -1)
    return both.cos().to(dtype), both.sin().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "heads", "groups", "num_tokens", "size"), [(1, 1, 1, 1, 2), (2, 5, 3, 7, 12)])
@pytest.mark.parametrize("halves_differ", [False, True])
def test_rope(batch, heads, groups, num_tokens, size, dtype, halves_differ):
    """Includes the layout of a projection, [B, T, H, D] viewed as [B, H, T, D], and one table for the whole batch."""
    tables = angles(1 if halves_differ else batch, num_tokens, size, dtype, halves_differ)
    query = drawn(batch, num_tokens, heads, size, dtype=dtype).transpose(1, 2)
    key = drawn(batch, num_tokens, groups, size, seed=1, dtype=dtype).transpose(1, 2)
    assert_matches(rope.rope_triton, rope.rope, [query, key, *tables], [0, 1])
    wide_key = drawn(batch, groups, num_tokens, 2 * size, seed=1, dtype=dtype)[..., ::2]
    assert_matches(rope.rope_triton, rope.rope, [query, wide_key, *tables], [0, 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "rotary"), [(12, 12), (12, 8)])
def test_rope_of_a_packed_product(size, rotary, dtype):
    packed = drawn(1, 7, (5 + 2 * 3) * size, dtype=dtype)
    tables = angles(1, 7, rotary, dtype, False)

    def called(function):
        return lambda *tensors: function(*tensors, 5, 3)

    assert_matches(called(rope.rope_packed_triton), called(rope.rope_packed), [packed, *tables], [0])


GATED = {
    "swiglu": (swiglu.swiglu_triton, swiglu.swiglu_packed_triton, swiglu.swiglu),
    "geglu": (geglu.geglu_triton, lambda both: swiglu.gated_packed(both, swiglu.GELU_TANH), geglu.geglu),
    "geglu exact": (
        lambda g, u: geglu.geglu_triton(g, u, tanh=False),
        lambda both: swiglu.gated_packed(both, swiglu.GELU),
        lambda g, u: geglu.geglu(g, u, tanh=False),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 31), (2, 3, 1031)])
@pytest.mark.parametrize("name", list(GATED))
def test_gated_activations(name, shape, dtype):
    kernel, packed_kernel, reference = GATED[name]
    inputs = [drawn(*shape, scale=3.0, dtype=dtype), drawn(*shape, seed=1, dtype=dtype)]
    assert_matches(kernel, reference, inputs)
    assert_matches(kernel, reference, [every_other(t) for t in inputs])
    assert_matches(packed_kernel, lambda both: reference(*both.chunk(2, dim=-1)), [torch.cat(inputs, dim=-1)])


def test_the_comparison_detects_a_wrong_gradient():
    with pytest.raises(AssertionError):
        assert_near(torch.zeros(3), drawn(3), 1e-5)
    with pytest.raises(AssertionError):
        assert_matches(lambda g, u: swiglu.swiglu_triton(u, g), swiglu.swiglu, [drawn(3, 5), drawn(3, 5, seed=1)])

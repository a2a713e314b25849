"""Packed attention compared with a dense block-diagonal mask."""

import pytest
import torch

from tunesmith.kernels.packed_attention import packed_attention, packed_attention_reference
from tunesmith.kernels.varlen_attention import Documents

LENGTHS = [5, 1, 17, 3]


def make_inputs(heads=6, groups=2, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, sum(LENGTHS), n, size, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_()
        for n in (heads, groups, groups)
    ]


def gradients(function, inputs, **options):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    output = function(*leaves, Documents(LENGTHS), **options)
    weights = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
    (output * weights).sum().backward()
    return [output.detach(), *(t.grad for t in leaves)]


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (5, 1)])
@pytest.mark.parametrize(
    "options", [{}, {"scale": 0.3}, {"causal": False}, {"window": 4}, {"window": 2}, {"window": 100}]
)
def test_value_and_gradients_equal_the_dense_mask(heads, groups, options):
    inputs = make_inputs(heads, groups)
    expected = gradients(packed_attention_reference, inputs, **options)
    for actual, reference in zip(gradients(packed_attention, inputs, **options), expected, strict=True):
        assert reference.abs().max() > 1e-3
        torch.testing.assert_close(actual, reference, rtol=1e-9, atol=1e-11)


def test_documents_do_not_attend_to_each_other():
    inputs = make_inputs()
    before = packed_attention(*inputs, Documents(LENGTHS))
    with torch.no_grad():
        for tensor in inputs:
            tensor[:, :, 6:23] = 1e3
    after = packed_attention(*inputs, Documents(LENGTHS))
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert torch.equal(before[:, :, 23:], after[:, :, 23:])
    assert not torch.equal(before[:, :, 6:23], after[:, :, 6:23])


def test_each_document_equals_the_unpacked_one():
    inputs = make_inputs(dtype=torch.float32)
    together = packed_attention(*inputs, Documents(LENGTHS)).split(LENGTHS, dim=2)
    parts = zip(*(t.split(LENGTHS, dim=2) for t in inputs), strict=True)
    for document, (query, key, value) in zip(together, parts, strict=True):
        alone = packed_attention(query, key, value, Documents([query.shape[2]]))
        torch.testing.assert_close(document, alone, rtol=1e-6, atol=1e-6)


def test_dropout_follows_the_generator_and_keeps_the_mean():
    inputs = make_inputs(dtype=torch.float32)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(packed_attention(*inputs, Documents(LENGTHS), dropout=0.5).detach())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(0)
    mean = torch.stack([packed_attention(*inputs, Documents(LENGTHS), dropout=0.2).detach() for _ in range(800)]).mean(
        0
    )
    torch.testing.assert_close(mean, packed_attention(*inputs, Documents(LENGTHS)), rtol=0, atol=0.25)


@pytest.mark.parametrize("lengths", [[5, 1, 17], [5, 1, 17, 4]])
def test_lengths_that_do_not_add_up_are_rejected(lengths):
    with pytest.raises(ValueError, match="do not match"):
        packed_attention(*make_inputs(), Documents(lengths))


def test_a_batch_size_above_one_is_rejected():
    with pytest.raises(ValueError, match="do not match"):
        packed_attention(*(t.expand(2, -1, -1, -1) for t in make_inputs()), Documents(LENGTHS))

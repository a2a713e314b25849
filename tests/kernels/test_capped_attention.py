"""Soft-capped scores and attention sinks over packed documents, compared with a dense mask and with transformers."""

import random

import pytest
import torch
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from tests.kernels.flash_on_cpu import flash_on_cpu
from tunesmith.kernels import capped_attention as module
from tunesmith.kernels.capped_attention import capped_attention
from tunesmith.kernels.dispatch import TABLE
from tunesmith.kernels.packed_attention import packed_attention_reference
from tunesmith.kernels.varlen_attention import Documents


def drawn_case(number):
    """Query, key, value and sinks of a random packing in fp64, the documents, and options."""
    draw = random.Random(number)
    lengths = [draw.choice((1, 2, draw.randrange(1, 30))) for _ in range(draw.randrange(1, 6))]
    groups, size, value_size = draw.choice((1, 2, 3)), draw.choice((4, 8)), draw.choice((4, 8))
    heads = groups * draw.choice((1, 2, 3))
    options = {"scale": draw.choice((None, 0.7)), "causal": draw.random() < 0.9}
    if options["causal"] and draw.random() < 0.5:
        options["window"] = draw.choice((1, 2, 5, 12, 40))
    if draw.random() < 0.7:
        options["softcap"] = draw.choice((0.5, 2.0, 30.0))
    generator = torch.Generator().manual_seed(number)
    shapes = ((heads, size), (groups, size), (groups, value_size))
    inputs = [torch.randn(1, sum(lengths), *shape, generator=generator).double().transpose(1, 2) for shape in shapes]
    inputs.append(torch.randn(heads, generator=generator).double())
    return inputs, Documents(lengths), options


def outcome(function, inputs, documents, **options):
    """Output and the gradients of query, key, value and sinks."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    output = function(*leaves[:3], documents, sinks=leaves[3], **options)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output.backward(direction.to(output.dtype))
    return [output.detach(), *(t.grad for t in leaves)]


def largest_difference(number, function=capped_attention):
    inputs, documents, options = drawn_case(number)
    expected = outcome(packed_attention_reference, inputs, documents, **options)
    actual = outcome(function, inputs, documents, **options)
    assert expected[0].norm() > 1e-3
    size = expected[0].norm()
    return max(float((a - e).norm() / max(e.norm(), size)) for a, e in zip(actual, expected, strict=True))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few queries, so that a document has several."""
    monkeypatch.setattr(module, "LARGEST_BLOCK", {"cpu": 4})
    monkeypatch.setattr(module, "SMALLEST_BLOCK", 4)


@pytest.mark.usefixtures("small_blocks")
def test_random_packings_equal_the_dense_mask():
    assert max(map(largest_difference, range(80))) < 1e-12


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("planted", ["window", "cap", "sinks"])
def test_planted_errors_are_found(planted):
    def wrong(query, key, value, documents, *, sinks, window=None, softcap=None, **options):
        if planted == "window" and window is not None:
            window += 1
        if planted == "cap" and softcap is not None:
            softcap *= 1.01
        sinks = sinks.detach() + 0.0 * sinks.sum() if planted == "sinks" else sinks
        return capped_attention(query, key, value, documents, sinks=sinks, window=window, softcap=softcap, **options)

    assert max(largest_difference(number, wrong) for number in range(20)) > 1e-3


@pytest.mark.parametrize("entry", range(len(TABLE["packed_attention"])))
def test_every_entry_of_the_table_computes_caps_and_sinks(entry):
    def scaled(query, key, value, documents, **options):
        with flash_on_cpu():
            return TABLE["packed_attention"][entry].function(query, key, value, documents, **options)

    assert largest_difference(3, scaled) < 1e-12


def test_scores_are_in_memory_for_one_block_at_a_time(monkeypatch):
    largest = []
    product = module.wide_product
    monkeypatch.setattr(module, "wide_product", lambda *a: largest.append(product(*a)) or largest[-1])
    monkeypatch.setattr(module, "SCORES", 1 << 12)
    inputs = [torch.randn(1, 2, 300, 4, dtype=torch.float64) for _ in range(3)]
    outcome(capped_attention, [*inputs, torch.zeros(2).double()], Documents([300]), softcap=2.0)
    assert max(scores.numel() for scores in largest) <= 2 * 300 * module.SMALLEST_BLOCK


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_is_within_its_rounding(dtype):
    inputs, documents, options = drawn_case(5)
    expected = outcome(packed_attention_reference, [t.to(dtype).double() for t in inputs], documents, **options)
    actual = outcome(capped_attention, [t.to(dtype) for t in inputs], documents, **options)
    limit = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == dtype
        assert float((one.double() - other).norm() / other.norm()) < limit


def test_dropout_is_the_same_in_the_backward_pass():
    """The output is linear in the values: with the same masks, the gradient is that of the forward pass."""
    inputs, documents, options = drawn_case(5)
    query, key, value, sinks = inputs
    value.requires_grad_()
    torch.manual_seed(3)
    output = capped_attention(query, key, value, documents, sinks=sinks, dropout=0.4, **options)
    direction = torch.randn(output.shape, dtype=output.dtype)
    output.backward(direction)
    torch.testing.assert_close((value.grad * value.detach()).sum(), (output.detach() * direction).sum())
    torch.manual_seed(3)
    again = capped_attention(query, key, value, documents, sinks=sinks, dropout=0.4, **options)
    assert torch.equal(again, output)
    assert not torch.equal(output, capped_attention(query, key, value, documents, sinks=sinks, dropout=0.4, **options))


def dense_mask(documents, num_tokens):
    document = torch.repeat_interleave(torch.arange(len(documents.lengths)), torch.tensor(documents.lengths))
    visible = (document[:, None] == document) & torch.ones(num_tokens, num_tokens).tril().bool()
    return torch.zeros(num_tokens, num_tokens, dtype=torch.float64).masked_fill(~visible, -1e300)[None, None]


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_value_and_gradients_equal_transformers(family):
    layer = torch.nn.Module()
    layer.num_key_value_groups = 3

    def theirs(query, key, value, documents, *, sinks, scale):
        layer.sinks = sinks
        mask = dense_mask(documents, query.shape[2])
        if family == "gpt_oss":
            output, _ = modeling_gpt_oss.eager_attention_forward(layer, query, key, value, mask, scaling=scale)
        else:
            output, _ = modeling_gemma2.eager_attention_forward(
                layer, query, key, value, mask, scaling=scale, softcap=1.5
            )
        return output.transpose(1, 2)

    def ours(query, key, value, documents, *, sinks, scale):
        if family == "gpt_oss":
            return capped_attention(query, key, value, documents, scale=scale, sinks=sinks)
        return capped_attention(query, key, value, documents, scale=scale, softcap=1.5)

    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 8), (2, 8), (2, 8))
    inputs = [torch.randn(1, 26, *shape, generator=generator).double().transpose(1, 2) for shape in shapes]
    inputs.append(torch.randn(6, generator=generator).double())
    expected, actual = (outcome(one, inputs, Documents([5, 1, 17, 3]), scale=0.9) for one in (theirs, ours))
    # Gemma 2 computes the softmax in fp32 in every precision.
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if family == "gpt_oss" else {"rtol": 1e-4, "atol": 1e-5}
    for one, other in zip(actual[: 5 if family == "gpt_oss" else 4], expected, strict=family == "gpt_oss"):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, **tolerance)

"""Attention of sequences that grow in steps of random sizes equals packed attention over the whole sequences."""

import random
from types import SimpleNamespace

import pytest
import torch

from tunesmith.inference import batched_attention, kv_cache
from tunesmith.inference.batched_attention import Span, Step, batched_attention_forward
from tunesmith.inference.kv_cache import KVCache
from tunesmith.inference.types import RequestRejected
from tunesmith.kernels.packed_attention import packed_attention_reference
from tunesmith.kernels.varlen_attention import Documents
from tunesmith.modeling.loading.attention_inputs import MaskRule

FORMS = {
    "plain": {},
    "window": {"window": 5},
    "chunk": {"chunk": 6},
    "window in a chunk": {"window": 3, "chunk": 6},
    "soft cap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "soft cap, sinks and window": {"softcap": 1.5, "sinks": True, "window": 5},
    "sinks and chunk": {"sinks": True, "chunk": 6},
}
LENGTHS = [23, 1, 9, 14]
HEADS, GROUPS, SIZE, VALUE_SIZE = 6, 2, 8, 4


def steps_of(draw):
    """Random numbers of new tokens of each sequence in each step: several at first, then one at a time."""
    rest = list(LENGTHS)
    while any(rest):
        counts = [min(n, draw.choice((1, 1, draw.randrange(2, 9)))) for n in rest]
        yield counts
        rest = [n - count for n, count in zip(rest, counts, strict=True)]


def in_steps(query, key, value, *, window=None, chunk=None, softcap=None, sinks=None, number=0):
    """Output of batched attention for whole sequences, [T, H, E], and of a second layer that shares its keys."""
    cache, offsets = KVCache(64), [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
    slots = [cache.open(1) for _ in LENGTHS]
    outputs = [torch.zeros(sum(LENGTHS), HEADS, VALUE_SIZE, dtype=query.dtype) for _ in range(2)]
    rule = None if window is None and chunk is None else MaskRule(window, chunk)
    options = {"scaling": 0.7, "softcap": softcap, "s_aux": sinks}
    for counts in steps_of(random.Random(number)):
        spans, rows = [], []
        for slot, offset, count in zip(slots, offsets, counts, strict=True):
            if count:
                spans.append(Span(len(rows), len(rows) + count, slot))
                rows += range(offset + slot.length, offset + slot.length + count)
        step = Step(spans, query.device)
        new_key, new_value = key[:, :, rows], value[:, :, rows]
        for layer, output in enumerate(outputs):
            module = SimpleNamespace(layer_idx=layer)
            output[rows] = batched_attention_forward(
                module, query[:, :, rows], new_key, new_value, rule, step=step, **options
            )[0][0]
        for span in spans:
            span.slot.length += span.stop - span.start
    assert set(slots[0].bucket.layers) == {0}
    return outputs


def difference(form, number):
    generator = torch.Generator().manual_seed(number)
    shapes = ((HEADS, SIZE), (GROUPS, SIZE), (GROUPS, VALUE_SIZE))
    query, key, value = (
        torch.randn(1, sum(LENGTHS), *shape, generator=generator).double().transpose(1, 2) for shape in shapes
    )
    options = dict(FORMS[form])
    if "sinks" in options:
        options["sinks"] = torch.randn(HEADS, generator=generator).double()
    first, second = in_steps(query, key, value, number=number, **options)
    documents = Documents(LENGTHS)
    documents = documents.chunks(options.pop("chunk")) if "chunk" in options else documents
    expected = packed_attention_reference(query, key, value, documents, scale=0.7, **options)[0].transpose(0, 1)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    return float((first - expected).norm() / expected.norm())


@pytest.mark.parametrize("form", FORMS)
def test_steps_of_random_sizes_equal_whole_sequences(form):
    assert max(difference(form, number) for number in range(4)) < 1e-12


def test_blocks_of_few_rows_give_the_same(monkeypatch):
    monkeypatch.setattr(batched_attention, "SCORES", 100)
    assert difference("soft cap, sinks and window", 1) < 1e-12


@pytest.mark.parametrize("form", ["window", "chunk", "soft cap, sinks and window"])
@pytest.mark.parametrize("where", ["one token", "several"])
def test_a_window_or_chunk_that_is_one_larger_is_found(form, where, monkeypatch):
    """One token per step and several take different paths."""
    plus = {"window": lambda size: size and size + 1, "chunk": lambda size: size and size + 1}
    if where == "one token":
        mask_of = kv_cache.mask_of
        monkeypatch.setattr(
            batched_attention, "mask_of", lambda a, b, w, c=None: mask_of(a, b, plus["window"](w), plus["chunk"](c))
        )
    else:
        rows = batched_attention._mask_of_rows
        monkeypatch.setattr(
            batched_attention,
            "_mask_of_rows",
            lambda a, b, form, device: rows(
                a, b, form._replace(window=plus["window"](form.window), chunk=plus["chunk"](form.chunk)), device
            ),
        )
    assert max(difference(form, number) for number in range(4)) > 1e-3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attention_mask": MaskRule(unknown="or_masks")}, "or_masks"),
        ({"attention_mask": torch.zeros(1, 1, 1, 1)}, "mask of its own"),
        ({"attention_mask": None, "position_bias": torch.zeros(1)}, "position_bias"),
        ({"attention_mask": None, "is_causal": False}, "not causal"),
    ],
)
def test_unsupported_attention_is_rejected_with_its_reason(options, reason):
    tensors = [torch.randn(1, 2, 1, 4) for _ in range(3)]
    slot = KVCache(64).open(1)
    step = Step([Span(0, 1, slot)], torch.device("cpu"))
    with pytest.raises(RequestRejected, match=reason) as caught:
        batched_attention_forward(SimpleNamespace(layer_idx=0), *tensors, step=step, **options)
    assert caught.value.code == "unsupported_attention"


def test_layers_without_a_number_or_a_step_are_rejected():
    tensors = [torch.randn(1, 2, 1, 4) for _ in range(3)]
    for module in (SimpleNamespace(), SimpleNamespace(layer_idx=0)):
        with pytest.raises(RequestRejected):
            batched_attention_forward(module, *tensors, None, step=None)

"""Packed rows of models with every kind of attention equal each row alone in transformers; unknown kinds are named."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import masking_utils

from tests.attention_models import MODELS, make_model
from tunesmith.errors import RunFault
from tunesmith.kernels.varlen_attention import Documents
from tunesmith.modeling.loading import attention_inputs
from tunesmith.modeling.loading.attention_choice import attention_of
from tunesmith.modeling.loading.attention_inputs import HARMLESS, MaskRule, tempered
from tunesmith.modeling.loading.keyword_passing import pass_keywords
from tunesmith.modeling.loading.packed_attention_hook import packed_attention_forward
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import causal_lm, recompute_activations

LENGTHS = [7, 3, 18]


def make_batch():
    tokens = torch.randint(3, 97, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    labels = torch.cat([torch.cat([part[1:], torch.tensor([-100])]) for part in tokens.split(LENGTHS)])
    return tokens, labels, torch.cat([torch.arange(n) for n in LENGTHS])


def alone(model, tokens, labels):
    """Summed loss of transformers' own logits, document by document with its eager attention."""
    with attention_of(causal_lm(model), "eager"):
        return torch.stack([
            cross_entropy(model(input_ids=part[None], use_cache=False).logits[0], targets, reduction="sum")
            for part, targets in zip(tokens.split(LENGTHS), labels.split(LENGTHS), strict=True)
        ]).sum()  # fmt: skip


def largest_difference(model, recompute=False):
    """Of the loss and of the gradient of every parameter, relative to transformers."""
    model = model.double()
    pass_keywords(model)
    tokens, labels, positions = make_batch()
    expected = alone(model, tokens, labels)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) > 20
    model.zero_grad()
    loss = CausalLoss(model).train()
    if recompute:
        recompute_activations(model)
    actual = loss(tokens, labels, positions, LENGTHS).loss_sum
    actual.backward()
    differences = [abs(float((actual / expected).detach()) - 1.0)]
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert parameter.grad is not None, name
            size = gradients[name].norm().clamp(min=1e-6)
            differences.append(float((parameter.grad - gradients[name]).norm() / size))
    return max(differences)


@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_equal_transformers_on_each_row(name):
    # 1e-4: rotary angles, norms and some softmaxes are fp32 in every precision.
    assert largest_difference(make_model(name), recompute=name in ("Gemma3n", "StableLm")) < 1e-4


@pytest.mark.parametrize(("name", "part"), [("Gemma2", "window"), ("Cohere2", "window"), ("Llama4", "chunk")])
def test_a_window_or_chunk_that_is_one_larger_is_found(name, part, monkeypatch):
    rule_of = attention_inputs._rule_of

    def planted(function):
        rule = rule_of(function)
        size = getattr(rule, part)
        return rule if size is None else MaskRule(**{part: size + 1})

    monkeypatch.setattr(attention_inputs, "_rule_of", planted)
    assert largest_difference(make_model(name)) > 1e-2


def test_positions_of_the_stream_instead_of_the_document_are_found(monkeypatch):
    monkeypatch.setattr(
        "tunesmith.modeling.loading.packed_attention_hook.tempered", lambda _module, query, _positions: query
    )
    assert largest_difference(make_model("Llama4")) > 1e-2


def test_queries_that_are_not_scaled_by_position_are_unchanged():
    query = torch.randn(1, 2, 5, 4)
    assert tempered(torch.nn.Module(), query, Documents([5]).positions) is query


def masks(**options):
    """The rule of the mask that transformers describes for these options."""
    config = make_model("Llama4").config
    config._attn_implementation = "tunesmith_packed"
    config.sliding_window = 5
    embeddings = torch.zeros(1, 28, 32)
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    kind = options.pop("kind")
    arguments = {"config": config, "inputs_embeds": embeddings, "attention_mask": None, "past_key_values": None}
    return getattr(masking_utils, f"create_{kind}_mask")(**arguments | {"position_ids": positions} | options)


def test_rules_of_the_masks_of_transformers():
    assert masks(kind="causal") is None
    assert masks(kind="causal", attention_mask=torch.ones(1, 28)) is None
    assert masks(kind="sliding_window_causal") == MaskRule(window=5)
    assert masks(kind="chunked_causal") == MaskRule(chunk=5)
    assert masks(kind="chunked_causal", position_ids=torch.arange(28)[None]) == MaskRule(chunk=5)


def test_unknown_masks_are_named():
    def prefix(_batch, _head, query, key):
        return (query < 4) & (key < 4)

    assert masks(kind="causal", or_mask_function=prefix).unknown == "or_masks"
    assert masks(kind="causal", and_mask_function=prefix).unknown == "test_unknown_masks_are_named"
    padding = torch.ones(1, 28)
    padding[0, :3] = 0
    assert "padding" in masks(kind="causal", attention_mask=padding).unknown


def attend(**options):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 2, 4, 8, generator=generator) for _ in range(3)]
    return packed_attention_forward(torch.nn.Module(), *tensors, documents=Documents([4]), **options)[0]


def test_unknown_arguments_are_refused_by_name():
    for name in HARMLESS:
        assert attend(attention_mask=None, **{name: torch.ones(1)}).shape == (1, 4, 2, 8)
    assert attend(attention_mask=None, position_bias=None, output_attentions=False).shape == (1, 4, 2, 8)
    for name, value in {"position_bias": torch.ones(1), "indices": torch.ones(1), "head_mask": 0}.items():
        with pytest.raises(RunFault, match=f"the argument {name} "):
            attend(attention_mask=None, **{name: value})


def test_a_mask_with_an_unknown_part_is_refused():
    with pytest.raises(RunFault, match="or_masks"):
        attend(attention_mask=MaskRule(unknown="or_masks"))
    whole = MaskRule(window=3)
    assert whole[:, :, slice(0, None), :] is whole
    assert whole[:, :, -1:, :].unknown


def test_the_argument_overrides_the_module():
    assert torch.equal(attend(attention_mask=None), attend(attention_mask=None, is_causal=True))
    assert not torch.allclose(attend(attention_mask=None), attend(attention_mask=None, is_causal=False))

"""Unpacked documents: losses and gradients of padded batches equal those of each document alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from tests.modeling.base_model.test_supported import make_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.forward_path import SIMILAR, ForwardPath, padded_batches, similar_lengths

LENGTHS = [7, 3, 18, 8]
PATHS = [ForwardPath(packed=False), ForwardPath(packed=False, one_batch=True), ForwardPath(packed=False, fused=False)]


def make_batch():
    tokens = torch.randint(3, 97, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    labels = torch.cat([torch.cat([part[1:], torch.tensor([-100])]) for part in tokens.split(LENGTHS)])
    labels[:2] = -100
    return tokens, labels, torch.cat([torch.arange(n) for n in LENGTHS])


def alone(model, tokens, labels):
    return torch.stack([
        cross_entropy(model(input_ids=t[None], use_cache=False).logits[0], target, ignore_index=-100, reduction="sum")
        for t, target in zip(tokens.split(LENGTHS), labels.split(LENGTHS), strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", ["Qwen2ForCausalLM", "Gemma3ForCausalLM"])
def test_losses_and_gradients_equal_those_of_each_document_alone(name, path):
    model = make_model(name).double()
    tokens, labels, positions = make_batch()
    expected_D = alone(model, tokens, labels)
    gradients = torch.autograd.grad(expected_D.sum(), model.parameters())
    expected = dict(zip(dict(model.named_parameters()), gradients, strict=True))
    loss = CausalLoss(model, path=path)
    sums = loss(tokens, labels, positions, LENGTHS)
    sums.loss_sum.backward()
    for key, parameter in model.named_parameters():
        # 1e-5: rotary angles are fp32 in every precision.
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-5, atol=1e-5, msg=key)
    assert sums.loss_sum.item() == pytest.approx(expected_D.sum().item(), rel=1e-6)
    losses_D, counts_D = loss.document_losses(tokens, labels, positions, LENGTHS)
    torch.testing.assert_close(losses_D.double(), expected_D, rtol=1e-5, atol=1e-5)
    scores = loss.score(tokens, labels, positions, LENGTHS)
    torch.testing.assert_close(torch.from_numpy(scores.loss_sum), expected_D.detach(), rtol=1e-5, atol=1e-5)
    assert counts_D.tolist() == scores.num_supervised.tolist() == [4, 2, 17, 7]
    assert sums.num_correct.item() == scores.num_correct.sum()


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_noise_reaches_unpacked_documents_in_training_only(path):
    loss = CausalLoss(make_model("LlamaForCausalLM"), path=path, neftune_alpha=20.0)
    batch = make_batch()
    plain = loss.eval()(*batch, LENGTHS).loss_sum.item()
    assert loss.eval()(*batch, LENGTHS).loss_sum.item() == plain
    assert loss.train()(*batch, LENGTHS).loss_sum.item() != plain


@given(st.lists(st.integers(0, 60), max_size=20), st.booleans(), st.booleans())
def test_each_document_is_in_one_group_of_similar_lengths(lengths, one_batch, same_length):
    groups = similar_lengths(lengths, one_batch=one_batch, same_length=same_length)
    assert sorted(i for group in groups for i in group) == [i for i, length in enumerate(lengths) if length]
    if one_batch:
        assert len(groups) <= 1
    else:
        share = 1 if same_length else SIMILAR
        assert all(lengths[i] >= share * lengths[group[0]] for group in groups for i in group)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.booleans())
def test_padded_batches_contain_every_token_at_its_place(lengths, one_batch):
    tokens = torch.arange(sum(lengths)) + 1000
    batches = list(padded_batches(tokens, lengths, one_batch=one_batch))
    assert sorted(torch.cat([batch.places_n for batch in batches]).tolist()) == list(range(sum(lengths)))
    for batch in batches:
        assert torch.equal(batch.tokens_BS[batch.mask_BS], tokens[batch.places_n])
        assert ("attention_mask" in batch.model_inputs()) == (batch.num_padding > 0)


def test_own_logits_of_packed_documents_are_rejected():
    with pytest.raises(ValueError, match="unpacked"):
        ForwardPath(packed=True, fused=False)

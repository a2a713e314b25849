"""Scores equal those of transformers, computed one example at a time without Tunesmith code."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.data.index.token_index import TokenIndex, write_index
from tunesmith.evaluation.metrics.language import loss_of
from tunesmith.evaluation.score import batches, by_row, score_index
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.losses.causal import CausalLoss


def make_documents(vocab_size: int, count: int = 40, longest: int = 300, seed: int = 0) -> list[tuple]:
    """Documents of very unequal length with prompts; number 5 has no targets, number 6 only targets."""
    generator = np.random.default_rng(seed)
    documents = []
    for number in range(count):
        length = int(np.clip(generator.lognormal(3.5, 1.0), 3, longest))
        supervised = np.arange(length) >= max(1, int(length * generator.uniform(0.1, 0.8)))
        if number in (5, 6):
            supervised[:] = number == 6
        documents.append((generator.integers(3, vocab_size, length).tolist(), supervised.tolist(), 100 + number))
    return documents


def by_hand(directory, documents) -> dict[int, tuple[float, int, int]]:
    """Return row -> (summed loss, targets, correct targets), from transformers logits of one document at a time."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    result = {}
    for tokens, supervised, row in documents:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0].double()
        losses, num_correct = 0.0, 0
        targets = [t for t in range(1, len(tokens)) if supervised[t]]
        for t in targets:
            losses -= float(torch.log_softmax(logits[t - 1], dim=-1)[tokens[t]])
            num_correct += int(logits[t - 1].argmax()) == tokens[t]
        result[row] = (losses, len(targets), num_correct)
    return result


@pytest.fixture(scope="module")
def documents():
    return make_documents(384)


@pytest.fixture(scope="module")
def index(documents, tmp_path_factory) -> TokenIndex:
    bins = [number // 3 for number in range(len(documents))]  # packed: scoring uses documents, not samples
    return write_index(tmp_path_factory.mktemp("index"), documents, max_seq_len=1024, bins=bins)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_llama_untied"])
def test_scores_equal_transformers(name, documents, index, request):
    directory = request.getfixturevalue(name)
    scores = score_index(CausalLoss(load_model(directory, dtype=torch.float32, attention=PACKED)), index)
    expected = by_hand(directory, documents)
    assert scores.row.tolist() == sorted(expected)
    assert scores.num_tokens.tolist() == [expected[row][1] for row in scores.row]
    assert scores.num_correct.tolist() == [expected[row][2] for row in scores.row]
    for row, loss_sum, num_tokens in zip(scores.row, scores.loss_sum, scores.num_tokens, strict=True):
        assert loss_sum == pytest.approx(expected[row][0], abs=1e-5 * max(num_tokens, 1))
    assert scores.num_tokens[5] == 0
    metrics = loss_of(scores)
    total = sum(e[1] for e in expected.values())
    assert metrics.loss == pytest.approx(math.fsum(e[0] for e in expected.values()) / total, abs=1e-6)
    assert metrics.token_accuracy == sum(e[2] for e in expected.values()) / total
    assert (metrics.num_examples, metrics.num_tokens) == (39, total)
    assert 4.0 < metrics.loss < 12.0  # untrained model with 384 tokens: about ln 384


def test_results_do_not_depend_on_the_token_budget(tiny_llama, index):
    model = CausalLoss(load_model(tiny_llama, dtype=torch.float32, attention=PACKED))
    scores = {budget: score_index(model, index, max_tokens_per_batch=budget) for budget in (64, 300, 1024, 8192)}
    for budget, other in scores.items():
        first = scores[64]
        assert other.row.tolist() == first.row.tolist()
        assert other.num_tokens.tolist() == first.num_tokens.tolist()
        mean_difference = np.abs(other.loss_sum - first.loss_sum) / np.maximum(first.num_tokens, 1)
        assert mean_difference.max() < 1e-5, budget
        assert loss_of(other).loss == pytest.approx(loss_of(first).loss, abs=1e-6)


def test_scores_of_ranks_combine_to_the_scores_of_one(tiny_llama, index):
    model = CausalLoss(load_model(tiny_llama, dtype=torch.float32, attention=PACKED))
    whole = score_index(model, index)
    parts = [score_index(model, index, documents=range(rank, index.num_documents, 3)) for rank in range(3)]
    joined = by_row(
        [row for part in parts for row in part.row.tolist()],
        [loss_sum for part in parts for loss_sum in part.loss_sum.tolist()],
        [count for part in parts for count in part.num_tokens.tolist()],
        [count for part in parts for count in part.num_correct.tolist()],
    )
    assert joined.row.tolist() == whole.row.tolist()
    assert joined.num_correct.tolist() == whole.num_correct.tolist()
    assert joined.loss_sum == pytest.approx(whole.loss_sum, abs=1e-3)


def test_documents_of_one_row_are_one_example(tiny_llama, documents, tmp_path):
    split = [(*documents[0][:2], 7), (*documents[1][:2], 7), (*documents[2][:2], 3)]
    model = CausalLoss(load_model(tiny_llama, dtype=torch.float32, attention=PACKED))
    scores = score_index(model, write_index(tmp_path, split, max_seq_len=1024))
    expected = by_hand(tiny_llama, documents[:3])
    assert scores.row.tolist() == [3, 7]
    assert scores.loss_sum.tolist() == pytest.approx([expected[102][0], expected[100][0] + expected[101][0]], abs=1e-3)
    assert scores.num_tokens.tolist() == [expected[102][1], expected[100][1] + expected[101][1]]


def test_scoring_preserves_module_modes_and_weights(tiny_llama, index):
    model = CausalLoss(load_model(tiny_llama, dtype=torch.float32, attention=PACKED))
    model.train()
    model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    calls = []
    score_index(model, index, max_tokens_per_batch=1024, progress=lambda done, total: calls.append((done, total)))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert calls[-1] == (40, 40)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_batches_respect_the_budget_and_contain_each_document_once():
    lengths = dict(enumerate([5, 100, 7, 64, 65, 1, 30, 30]))
    result = list(batches(lengths, 64))
    assert sorted(number for batch in result for number in batch) == list(lengths)
    assert all(len(batch) == 1 or sum(lengths[n] for n in batch) <= 64 for batch in result)
    assert [sum(lengths[n] for n in batch) for batch in result] == [100, 65, 64, 60, 13]


@pytest.mark.weights
def test_real_weights_score_equal_transformers(smollm2, tmp_path):
    documents = make_documents(49152, count=8, longest=80, seed=3)
    index = write_index(tmp_path, documents, max_seq_len=1024)
    model = CausalLoss(load_model(smollm2, dtype=torch.float32, attention=PACKED))
    expected = by_hand(smollm2, documents)
    total = sum(e[1] for e in expected.values())
    for budget in (64, 8192):
        metrics = loss_of(score_index(model, index, max_tokens_per_batch=budget))
        assert metrics.loss == pytest.approx(math.fsum(e[0] for e in expected.values()) / total, abs=1e-5)
        assert metrics.token_accuracy == sum(e[2] for e in expected.values()) / total

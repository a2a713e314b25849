"""The loss of packed documents equals that of separate documents, and that of transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from tunesmith.configs.sections.method import Full, Lora
from tunesmith.errors import RunFault
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.attention_choice import attention_of
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import causal_lm, recompute_activations

LENGTHS = [9, 2, 40, 21]
FULL = Full(kind="full")
LORA = Lora(kind="lora", lora_rank=4)


def make_batch(directory: Path, lengths=None):
    """(tokens, labels, positions) of concatenated documents of real text, with about a third of the labels masked."""
    lengths = lengths or LENGTHS
    generator = torch.Generator().manual_seed(0)
    text = (Path(__file__).parents[3] / "LICENSE").read_text(encoding="utf-8")
    tokens = torch.tensor(
        Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids[100 : 100 + sum(lengths)]
    )
    labels = []
    for part in tokens.split(lengths):
        shifted = torch.cat([part[1:], torch.tensor([-100])])
        hidden = torch.rand(len(part), generator=generator) < 0.3
        labels.append(shifted.masked_fill(hidden, -100))
    positions = torch.cat([torch.arange(n) for n in lengths])
    return tokens, torch.cat(labels), positions


def gradients(loss: CausalLoss, *batch, **options) -> tuple[float, dict[str, torch.Tensor]]:
    loss.zero_grad()
    sums = loss(*batch, **options)
    sums.loss_sum.backward()
    return sums.loss_sum.item(), {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained_parameters(loss).items()
    }


def initialize_adapters(model: torch.nn.Module) -> None:
    """Set the adapters' zero matrices to random values, so that both matrices get gradients."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in trained_parameters(model).items():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.02, generator=generator)


def assert_packed_equals_alone(loss: CausalLoss, directory: Path, tolerance: float = 1e-5) -> None:
    """Compare the loss per token (within 1e-5) and the gradients of the mean loss (within `tolerance`, relative to 1 or
    the parameter's largest gradient)."""
    tokens, labels, positions = make_batch(directory)
    packed_loss, packed = gradients(loss, tokens, labels, positions, LENGTHS)
    alone_loss, alone = 0.0, {name: torch.zeros_like(g) for name, g in packed.items()}
    for parts in zip(tokens.split(LENGTHS), labels.split(LENGTHS), positions.split(LENGTHS), LENGTHS, strict=True):
        one_loss, one = gradients(loss, *parts[:3], [parts[3]])
        alone_loss += one_loss
        for name, gradient in one.items():
            alone[name] += gradient
    num_supervised = int((labels != -100).sum())
    assert packed_loss / num_supervised == pytest.approx(alone_loss / num_supervised, abs=1e-5)
    for name, gradient in packed.items():
        assert gradient.abs().max() > 0, name
        difference, largest = (
            (gradient - alone[name]).abs().max() / num_supervised,
            gradient.abs().max() / num_supervised,
        )
        assert difference < tolerance * max(1.0, float(largest)), name
        assert (gradient - alone[name]).norm() < 1e2 * tolerance * gradient.norm(), name


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_llama_untied"])
def test_packed_documents_equal_separate_documents(fixture, method, request):
    directory = request.getfixturevalue(fixture)
    model = apply_method(load_model(directory, dtype=torch.float32), method)
    initialize_adapters(model)
    assert_packed_equals_alone(CausalLoss(model).train(), directory)


@pytest.mark.weights
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_packed_documents_of_smollm2_equal_separate_documents(smollm2, dtype, tolerance):
    """fp64 proves that no token attends to another document. In fp32 the hidden states of a document's first token
    reach 25,000 in this model; rounding them changes the gradient of a separate document of 2 tokens by 5e-5."""
    model = apply_method(load_model(smollm2, dtype=dtype), LORA)
    initialize_adapters(model)
    assert_packed_equals_alone(CausalLoss(model.to(dtype)).train(), smollm2, tolerance)


def transformers_losses(model, tokens, labels, lengths) -> list[tuple[float, int]]:
    """(loss sum, correct) of each document by transformers' own attention and logits."""
    results = []
    with torch.no_grad(), attention_of(model, "sdpa"):
        for part, targets in zip(tokens.split(lengths), labels.split(lengths), strict=True):
            logits = model(part[None]).logits[0].double()
            loss = cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            results.append((loss.item(), int((logits.argmax(-1) == targets).sum())))
    return results


@pytest.mark.parametrize(
    "fixture", ["tiny_llama", "tiny_llama_untied", pytest.param("smollm2", marks=pytest.mark.weights)]
)
def test_loss_and_scores_equal_transformers(fixture, request):
    directory = request.getfixturevalue(fixture)
    model = load_model(directory, dtype=torch.float32)
    tokens, labels, positions = make_batch(directory)
    loss = CausalLoss(model)
    sums = loss(tokens, labels, positions, LENGTHS)
    scores = loss.score(tokens, labels, positions, LENGTHS)
    expected = transformers_losses(model, tokens, labels, LENGTHS)
    num_supervised = int((labels != -100).sum())
    assert sums.num_supervised == num_supervised == scores.num_supervised.sum()
    assert sums.loss_sum.item() / num_supervised == pytest.approx(
        sum(e[0] for e in expected) / num_supervised, abs=1e-5
    )
    assert int(sums.num_correct) == sum(e[1] for e in expected) == scores.num_correct.sum()
    assert scores.loss_sum.dtype == np.float64
    for actual, (reference, _), count in zip(scores.loss_sum, expected, scores.num_supervised, strict=True):
        assert actual / max(count, 1) == pytest.approx(reference / max(count, 1), abs=1e-5)


def test_gradients_equal_transformers(tiny_llama):
    model = apply_method(load_model(tiny_llama, dtype=torch.float32), FULL)
    tokens, labels, positions = make_batch(tiny_llama)
    _, actual = gradients(CausalLoss(model).train(), tokens, labels, positions, LENGTHS)
    plain = load_model(tiny_llama, dtype=torch.float32).train()
    for part, targets in zip(tokens.split(LENGTHS), labels.split(LENGTHS), strict=True):
        cross_entropy(plain(part[None]).logits[0], targets, ignore_index=-100, reduction="sum").backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(actual[f"model.{name}"], parameter.grad, rtol=1e-4, atol=1e-4)


def test_label_smoothing_equals_torch(tiny_llama):
    model = load_model(tiny_llama, dtype=torch.float32)
    tokens, labels, positions = make_batch(tiny_llama, [30])
    actual = CausalLoss(model)(tokens, labels, positions, [30], label_smoothing=0.5).loss_sum.item()
    with torch.no_grad(), attention_of(model, "sdpa"):
        logits = model(tokens[None]).logits[0]
    expected = cross_entropy(logits, labels, ignore_index=-100, reduction="sum", label_smoothing=0.5).item()
    assert actual == pytest.approx(expected, rel=1e-6)
    assert abs(actual - cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()) > 1e-3 * expected


def test_gradient_checkpointing_gives_identical_gradients(tiny_llama):
    results = []
    for checkpointing in (False, True):
        model = apply_method(load_model(tiny_llama, dtype=torch.float32), LORA, dropout=0.1)
        initialize_adapters(model)
        if checkpointing:
            recompute_activations(model)
        calls = []
        causal_lm(model).model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(5)
        results.append((*gradients(CausalLoss(model).train(), *make_batch(tiny_llama), LENGTHS), len(calls)))
    assert (results[0][2], results[1][2]) == (1, 2)
    assert results[0][0] == results[1][0]
    for name, gradient in results[0][1].items():
        assert torch.equal(gradient, results[1][1][name]), name


def test_a_filler_gives_zero_loss_and_gradients(tiny_llama):
    model = apply_method(load_model(tiny_llama, dtype=torch.float32), FULL)
    tokens, labels, positions = make_batch(tiny_llama)
    value, grads = gradients(CausalLoss(model).train(), tokens, torch.full_like(labels, -100), positions, LENGTHS)
    assert value == 0.0
    assert all(g.abs().max() == 0 for g in grads.values())


@pytest.mark.parametrize("lora_dropout", [0.0, 0.5])
@pytest.mark.parametrize("dropout", [None, 0.3])
def test_dropout_acts_in_training_only(tiny_llama, dropout, lora_dropout):
    method = Lora(kind="lora", lora_rank=4, lora_dropout=lora_dropout)
    model = apply_method(load_model(tiny_llama, dtype=torch.float32), method, dropout=dropout)
    initialize_adapters(model)
    loss, batch = CausalLoss(model), make_batch(tiny_llama)
    losses = {}
    for training in (True, False):
        loss.train(training)
        losses[training] = {loss(*batch, LENGTHS).loss_sum.item() for _ in range(3)}
    assert len(losses[False]) == 1
    assert len(losses[True]) == (3 if dropout or lora_dropout else 1)
    loss.train()
    assert len({float(loss.score(*batch, LENGTHS).loss_sum.sum()) for _ in range(2)}) == 1
    assert loss.training


def test_noise_acts_in_training_only(tiny_llama):
    loss, batch = CausalLoss(load_model(tiny_llama, dtype=torch.float32), neftune_alpha=5.0), make_batch(tiny_llama)
    loss.eval()
    quiet = loss(*batch, LENGTHS).loss_sum.item()
    assert loss(*batch, LENGTHS).loss_sum.item() == quiet
    loss.train()
    noisy = {loss(*batch, LENGTHS).loss_sum.item() for _ in range(2)}
    assert len(noisy | {quiet}) == 3
    assert loss.score(*batch, LENGTHS).loss_sum.sum() == pytest.approx(quiet, rel=1e-6)


def test_an_adapter_on_the_head_is_used(tiny_llama_untied):
    method = Lora(kind="lora", lora_rank=4, target_modules=["q_proj", "lm_head"])
    model = apply_method(load_model(tiny_llama_untied, dtype=torch.float32), method)
    initialize_adapters(model)
    tokens, labels, positions = make_batch(tiny_llama_untied)
    loss = CausalLoss(model).train()
    sums = loss(tokens, labels, positions, LENGTHS)
    expected = transformers_losses(causal_lm(model), tokens, labels, LENGTHS)
    assert sums.loss_sum.item() == pytest.approx(sum(e[0] for e in expected), rel=1e-6)
    assert loss.score(tokens, labels, positions, LENGTHS).loss_sum.tolist() == pytest.approx(
        [e[0] for e in expected], rel=1e-6
    )
    _, grads = gradients(loss, tokens, labels, positions, LENGTHS)
    assert [name for name, g in grads.items() if "lm_head" in name and g.abs().max() > 0]


def test_bf16_compute_keeps_fp32_weights(tiny_llama):
    model = apply_method(load_model(tiny_llama, dtype=torch.float32), FULL)
    batch = make_batch(tiny_llama)
    exact, _ = gradients(CausalLoss(model).train(), *batch, LENGTHS)
    low, grads = gradients(CausalLoss(model, compute_dtype=torch.bfloat16).train(), *batch, LENGTHS)
    assert low != exact
    assert low == pytest.approx(exact, rel=2e-2)
    assert all(g.dtype == torch.float32 and g.abs().max() > 0 for g in grads.values())


def test_bf16_frozen_weights_with_fp32_adapters(tiny_llama):
    exact = CausalLoss(load_model(tiny_llama, dtype=torch.float32))(*make_batch(tiny_llama), LENGTHS).loss_sum.item()
    model = apply_method(load_model(tiny_llama, dtype=torch.bfloat16), LORA)
    initialize_adapters(model)
    low, grads = gradients(CausalLoss(model, compute_dtype=torch.bfloat16).train(), *make_batch(tiny_llama), LENGTHS)
    assert low == pytest.approx(exact, rel=5e-2)
    assert all(g.dtype == torch.float32 and g.abs().max() > 0 for g in grads.values())


def test_packed_attention_without_documents_raises(tiny_llama):
    model = load_model(tiny_llama, dtype=torch.float32, attention=PACKED)
    with pytest.raises(RunFault, match="without documents"):
        model(torch.tensor([[3, 4, 5]]))
    with attention_of(model, "sdpa"):
        assert model(torch.tensor([[3, 4, 5]])).logits.isfinite().all()
    assert model.config._attn_implementation == PACKED


def test_z_loss_is_added_only_in_training(tiny_llama):
    model = load_model(tiny_llama, dtype=torch.float32, attention=PACKED)
    tokens, labels, positions = make_batch(tiny_llama)
    plain, with_z = CausalLoss(model), CausalLoss(model, z_loss=0.1)
    hidden_TH = plain._hidden(tokens, positions, LENGTHS)
    supervised = labels != -100
    expected = 0.1 * model.get_output_embeddings()(hidden_TH)[supervised].logsumexp(-1).square().sum()
    assert expected > 1.0
    batch = (tokens, labels, positions, LENGTHS)
    added = with_z.train()(*batch).loss_sum - plain.train()(*batch).loss_sum
    assert added.item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.equal(with_z.eval()(*batch).loss_sum, plain.eval()(*batch).loss_sum)
    with_z.train()
    assert np.array_equal(with_z.score(*batch).loss_sum, plain.score(*batch).loss_sum)

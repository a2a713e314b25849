"""Rows of new tokens trained alone: loss and gradient as peft's, every other row of embedding and head unchanged."""

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict

from tunesmith.configs.sections.method import Lora
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.adapters.new_rows import wrappers_of
from tunesmith.modeling.loading.base import load_base
from tunesmith.modeling.losses import causal
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.patching.fast import install_kernels
from tunesmith.training.export.files import heads_are_tied, plain_weights

ROWS = [100, 382, 383]
METHOD = Lora(kind="lora", lora_rank=4, lora_alpha=8)
BATCH = (
    torch.tensor([5, 100, 382, 7, 8, 383, 9, 100, 3, 4]),
    torch.tensor([-100, 382, 7, 8, 383, 9, 100, 3, 4, 100]),
    torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3]),
    [6, 4],
)


@pytest.fixture(params=["tied", "untied"])
def base(request, tiny_llama, tiny_llama_untied):
    return tiny_llama if request.param == "tied" else tiny_llama_untied


def adapted(base, dtype: torch.dtype = torch.float32) -> PeftModel:
    """A model with adapter and rows away from their initial values."""
    model = apply_method(load_base(base, METHOD, dtype=dtype, device="cpu"), METHOD, new_rows=ROWS)
    with torch.no_grad():
        for number, parameter in enumerate(trained_parameters(model).values()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    assert isinstance(model, PeftModel)
    return model


def result(model, kernels: Kernels) -> tuple[float, list[float], dict[str, torch.Tensor]]:
    """Loss, scores, and the gradients by name."""
    loss = CausalLoss(model, kernels=kernels)
    total = loss(*BATCH).loss_sum
    total.backward()
    return total.item(), list(loss.score(*BATCH).loss_sum), {n: p.grad for n, p in trained_parameters(model).items()}


def test_loss_and_gradient_equal_pefts(base, monkeypatch):
    model = adapted(base)
    kernels = Kernels("auto")
    install_kernels(model, kernels, device="cpu", compute_dtype=None)
    own = result(model, kernels)

    reference = adapted(base)
    for _, module in wrappers_of(reference):
        del module.forward  # the one that replaces peft's
    monkeypatch.setattr(causal, "linear_with_rows", lambda head: None)
    expected = result(reference, Kernels("off"))
    assert own[0] == pytest.approx(expected[0], rel=1e-6)
    assert own[1] == pytest.approx(expected[1], rel=1e-6)
    assert own[2].keys() == expected[2].keys()
    assert any("trainable_tokens_delta" in name for name in own[2])
    for name, gradient in own[2].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, expected[2][name], rtol=1e-4, atol=1e-5)


def test_without_kernels_the_loss_is_the_same(base):
    fused, plain = result(adapted(base), Kernels("auto")), result(adapted(base), Kernels("off"))
    assert fused[0] == pytest.approx(plain[0], rel=1e-6)
    for name, gradient in fused[2].items():
        torch.testing.assert_close(gradient, plain[2][name], rtol=1e-4, atol=1e-5)


def test_logits_equal_those_of_the_merged_weights(base):
    model = adapted(base).eval()
    merged = load_base(base, METHOD, dtype=torch.float32, device="cpu")
    merged.load_state_dict({name: weight() for name, weight in plain_weights(causal_lm(model), torch.float32).items()})
    causal_lm(model).set_attn_implementation("sdpa")
    merged.set_attn_implementation("sdpa")
    with torch.no_grad():
        tokens = BATCH[0][None]
        torch.testing.assert_close(model(input_ids=tokens).logits, merged(input_ids=tokens).logits, rtol=0, atol=1e-5)
        with model.disable_adapter():
            original = load_base(base, METHOD, dtype=torch.float32, device="cpu")
            original.set_attn_implementation("sdpa")
            assert torch.equal(model(input_ids=tokens).logits, original(input_ids=tokens).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_the_new_rows_change(base, dtype):
    original = load_base(base, METHOD, dtype=dtype, device="cpu")
    model = adapted(base, dtype)
    weights = plain_weights(causal_lm(model), dtype)
    assert heads_are_tied(causal_lm(model)) == original.config.tie_word_embeddings
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        changed = (weights[name]() != original.state_dict()[name]).any(1)
        assert changed.nonzero().flatten().tolist() == ROWS, name


def test_trained_rows_are_named_in_checkpoints_and_adapters(base):
    model = adapted(base)
    tied = causal_lm(model).config.tie_word_embeddings
    places = ["model.embed_tokens"] + ([] if tied else ["lm_head"])
    names = [name for name in trained_parameters(model) if "token_adapter" in name]
    assert sorted(names) == sorted(f"base_model.model.{p}.token_adapter.trainable_tokens_delta.default" for p in places)
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    rows = {name: value for name, value in saved.items() if "token_adapter" in name}
    assert sorted(rows) == sorted(f"base_model.model.{p}.token_adapter.trainable_tokens_delta" for p in places)
    assert all(value.shape == (len(ROWS), 32) for value in rows.values())

"""Decoder classes with fused forms: packed documents give the same losses and gradients as separate ones in
transformers; dropout is applied."""

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from tests.modeling.decoders import DECODERS
from tunesmith.configs.sections.method import Full, LastLayers, Lora
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.loading.attention_choice import attention_of
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import causal_lm, recompute_activations

LENGTHS = [7, 3, 18]
SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
# Sliding windows shorter than the longest document, if the class has them.
OWN = {
    "MistralForCausalLM": {"sliding_window": 5, "head_dim": 8},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "Qwen3ForCausalLM": {"head_dim": 16},
    "GemmaForCausalLM": {"head_dim": 16},
    "Gemma3ForCausalLM": {"head_dim": 16, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "Phi3ForCausalLM": {"sliding_window": 5},
}


def make_model(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    sizes = dict(SIZES)
    if name == "GPT2LMHeadModel":
        sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
        sizes |= {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
    return model_class(model_class.config_class(**sizes, **OWN.get(name, {}))).eval()


def make_batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 97, (sum(LENGTHS),), generator=generator)
    labels = torch.cat([torch.cat([part[1:], torch.tensor([-100])]) for part in tokens.split(LENGTHS)])
    return tokens, labels, torch.cat([torch.arange(n) for n in LENGTHS])


def alone(model, tokens, labels):
    """Loss sum with gradients, by transformers' own attention and logits, document by document."""
    with attention_of(causal_lm(model), "sdpa"):
        return torch.stack([
            cross_entropy(model(input_ids=part[None], use_cache=False).logits[0], targets, ignore_index=-100,
            reduction="sum")
            for part, targets in zip(tokens.split(LENGTHS), labels.split(LENGTHS), strict=True)
        ]).sum()  # fmt: skip


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_packed_documents_equal_transformers_on_each_document(name, recompute):
    model = make_model(name).double()
    tokens, labels, positions = make_batch()
    expected = alone(model, tokens, labels)
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    loss = CausalLoss(model).train()
    if recompute:
        recompute_activations(model)
    sums = loss(tokens, labels, positions, LENGTHS)
    sums.loss_sum.backward()
    assert sums.loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)
    for n, p in model.named_parameters():
        # 1e-5: rotary angles are fp32 in every precision.
        torch.testing.assert_close(p.grad, gradients[n], rtol=1e-5, atol=1e-5, msg=n)


@pytest.mark.parametrize("name", DECODERS)
def test_dropout_reaches_the_model(name):
    batch = make_batch()
    for dropout in (None, 0.5):
        model = make_model(name)
        model = apply_method(model, Lora(kind="lora"), dropout=dropout)
        loss = CausalLoss(model).train()
        values = {loss(*batch, LENGTHS).loss_sum.item() for _ in range(3)}
        assert len(values) == (1 if dropout is None else 3)


@pytest.mark.parametrize("method", [
    Full(kind="full"), LastLayers(kind="last_layers", num_layers=1), LastLayers(kind="last_layers", num_layers=1,
    train_head=True), Lora(kind="lora", lora_rank=3),
], ids=["full", "last", "last+head", "lora"])  # fmt: skip
@pytest.mark.parametrize("name", DECODERS)
def test_facts_count_what_is_trained(name, method, tmp_path, tiny_llama):
    model = make_model(name)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tiny_llama / "tokenizer.json").read_bytes())
    facts = model_facts(tmp_path, name, method)
    assert facts.num_params == sum(p.numel() for p in model.parameters())
    assert (facts.num_layers, facts.hidden_size, facts.vocab_size) == (2, 32, 97)
    assert facts.model_type == model.config.model_type
    assert facts.tied_embeddings == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    trained = trained_parameters(apply_method(model, method))
    assert facts.num_trained_params == sum(p.numel() for p in trained.values())

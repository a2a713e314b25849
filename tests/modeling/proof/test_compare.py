"""The model proof finds the path that equals the model's own forward, and notices planted faults."""

import math

import pytest
import torch
import transformers

from tunesmith.kernels.varlen_attention import Documents
from tunesmith.modeling.losses import causal
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.forward_path import PACKED_AND_FUSED
from tunesmith.modeling.losses.logit_transform import LogitTransform, logit_transform
from tunesmith.modeling.proof.compare import prove
from tunesmith.modeling.proof.examples import examples
from tunesmith.modeling.proof.loaded import prove_loaded

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MAMBA = {"state_size": 4, "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2}


def make(name, **own):
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return kind(kind.config_class(**{**SIZES, **own})).eval()


def paths(findings):
    """(packing, loss), and the comparisons that failed."""
    return (findings.packing, findings.loss), [c for c in findings.comparisons if not c.holds]


@pytest.mark.parametrize(("name", "own"), [
    ("LlamaForCausalLM", {}),
    ("MistralForCausalLM", {"sliding_window": 8, "head_dim": 8}),
    ("MixtralForCausalLM", {"num_local_experts": 4}),
    ("GraniteForCausalLM", {"logits_scaling": 8.0}),
    ("CohereForCausalLM", {"logit_scale": 0.0625}),
    ("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_everything_holds_for_models_with_attention_through_the_interface(name, own):
    model = make(name, **own)
    findings = prove(model)
    assert paths(findings) == ((True, "fused"), [])
    assert findings.cached_generation
    assert model.config._attn_implementation == "sdpa"
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("name", "own", "expected"), [
    ("LlamaForCausalLM", {}, LogitTransform()),
    ("GraniteForCausalLM", {"logits_scaling": 8.0}, LogitTransform(output_scale=0.125)),
    ("CohereForCausalLM", {"logit_scale": 0.0625}, LogitTransform(output_scale=0.0625)),
    ("Gemma3ForCausalLM", {"final_logit_softcapping": 30.0, "head_dim": 8}, LogitTransform(soft_cap=30.0)),
])  # fmt: skip
def test_scales_and_soft_cap_around_the_head_are_measured(name, own, expected):
    assert logit_transform(make(name, **own)) == expected


def test_a_missing_logit_scale_is_found(monkeypatch):
    monkeypatch.setattr(causal, "logit_transform", lambda model: LogitTransform())
    findings = prove(make("GraniteForCausalLM", logits_scaling=8.0, initializer_range=0.2))
    chosen, failed = paths(findings)
    assert chosen == (False, "model")
    assert {"loss (packed, fused loss)", "loss (unpacked, fused loss)"} <= {c.name for c in failed}
    assert all(c.limit < c.difference < math.inf for c in failed)


def test_a_leak_between_packed_documents_is_found(monkeypatch):
    monkeypatch.setattr(causal, "Documents", lambda lengths: Documents([sum(lengths)]))
    chosen, failed = paths(prove(make("LlamaForCausalLM")))
    assert chosen == (False, "fused")
    assert {c.name for c in failed} >= {"token losses (packed, fused loss)"}
    assert max(c.difference for c in failed) > 100 * failed[-1].limit


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_wrong_rotary_base_is_found(monkeypatch, everywhere):
    model = make("LlamaForCausalLM")
    rotary = model.model.rotary_emb
    forward, right = CausalLoss.forward, rotary.inv_freq.clone()

    def with_wrong_base(self, *arguments, **keywords):
        wrong = everywhere or self.path.packed
        rotary.inv_freq = 500_000.0 ** -torch.linspace(0, 1, len(right) + 1)[:-1] if wrong else right
        try:
            return forward(self, *arguments, **keywords)
        finally:
            rotary.inv_freq = right

    monkeypatch.setattr(CausalLoss, "forward", with_wrong_base)
    chosen, failed = paths(prove(model))
    assert chosen == ((False, None) if everywhere else (False, "fused"))
    assert any(c.name.startswith("gradient of") and c.difference > 10 * c.limit for c in failed)


def test_a_state_space_model_goes_unpacked():
    torch.manual_seed(0)
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**MAMBA)).eval()
    findings = prove(model)
    chosen, failed = paths(findings)
    assert chosen == (False, "fused")
    assert all("(packed" in c.name for c in failed)
    assert findings.cached_generation


def test_a_class_with_a_head_of_its_own_uses_its_own_logits():
    findings = prove(make("BertLMHeadModel", is_decoder=True))
    chosen, failed = paths(findings)
    assert chosen == (False, "model")
    assert all("BertLMHeadModel" in c.reason for c in failed)


def test_documents_are_longer_than_the_window_and_avoid_special_tokens():
    batch = examples(make("MistralForCausalLM", sliding_window=40).config)
    assert max(batch.lengths) > 40
    assert not set(batch.tokens_T.tolist()) & {0, 1, 2}
    assert torch.equal(batch.tokens_T, examples(make("MistralForCausalLM", sliding_window=40).config).tokens_T)


def test_the_loaded_model_is_compared_on_its_planned_path(monkeypatch):
    loss = CausalLoss(make("LlamaForCausalLM"))
    path, results = prove_loaded(loss, path=PACKED_AND_FUSED)
    assert path == PACKED_AND_FUSED
    assert results[0].loss == pytest.approx(results[0].own_loss, rel=1e-5)
    monkeypatch.setattr(causal, "Documents", lambda lengths: Documents([sum(lengths)]))
    path, results = prove_loaded(loss, path=PACKED_AND_FUSED)
    assert path is None
    assert results[0].comparison.difference > results[0].comparison.limit
    path, results = prove_loaded(loss)
    assert (path, loss.path) == (results[-1].comparison.holds and loss.path, path)
    assert not path.packed


def test_another_ranks_fault_rejects_a_path_here():
    loss = CausalLoss(make("LlamaForCausalLM"))
    flags = iter([True, False])
    path, results = prove_loaded(loss, agree=lambda flag: flag or next(flags))
    assert not path.packed
    assert [r.comparison.holds for r in results] == [True, True]

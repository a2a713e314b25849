"""One class per mechanism: the model proof, one step of LoRA on the path that it found, and the export read back."""

import pytest
import torch

from tests.conftest import make_tokenizer
from tests.training.export.test_export import LORA, make_plan
from tools.tiny_models import sees_later_tokens, tiny_config, tiny_model
from tunesmith.configs.plan import ModelProof
from tunesmith.configs.recipe import Recipe
from tunesmith.data.index.loader import micro_batch
from tunesmith.data.index.token_index import TokenIndex, write_index
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.proof.compare import prove
from tunesmith.rundir.paths import RunDir
from tunesmith.training.export.export import export_run

PACKED = {
    "LlamaForCausalLM": "grouped-query attention",
    "Olmo3ForCausalLM": "windows in some layers",
    "Phi3ForCausalLM": "fused projections",
    "GraniteForCausalLM": "scaled residuals and logits",
    "GPT2LMHeadModel": "learned positions, transposed matrices",
    "DeepseekV3ForCausalLM": "latent keys and values, routed and shared experts",
    "MixtralForCausalLM": "experts",
}
OTHERS = {
    "Gemma2ForCausalLM": "soft-capped attention and logits",
    "GptOssForCausalLM": "attention sinks, experts with biases",
    "BloomForCausalLM": "attention of its own, with ALiBi",
    "MambaForCausalLM": "state-space layers",
    "Qwen3_5ForCausalLM": "linear and full attention",
    "GlmMoeDsaForCausalLM": "attention to selected tokens, which padding changes",
}
"""Packed or not: what attention supports decides."""


@pytest.mark.parametrize("name", [*PACKED, *OTHERS])
def test_a_tiny_model_is_proved_trained_and_exported(name, tmp_path):
    base, tokenizer = write_tiny(name, tmp_path / "base")
    findings = prove(load_model(base, dtype=torch.float32))
    assert findings.path is not None, findings.comparisons
    assert findings.cached_generation
    if name in PACKED:
        assert (findings.packing, findings.loss) == (True, "fused")
    assert findings.padding == ("padding" not in OTHERS.get(name, ""))

    run = RunDir(tmp_path / "run")
    run.create()
    index = write_index(run.root / "index", documents(tokenizer), max_seq_len=512)
    values = {"name": "demo", "model": {"base": "bases/tiny"}, "data": {"train": ["rows.jsonl"]}, "method": LORA}
    plan = make_plan(base, run.root / "index", index, Recipe.model_validate(values), "fp32")
    proof = ModelProof.model_validate(findings.as_json())
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"proof": proof})})

    model = apply_method(causal_lm(load_model(base, dtype=torch.float32)), plan.recipe.method)
    loss = CausalLoss(model, path=findings.path).train()
    step(loss, TokenIndex.open(run.root / "index"))
    gate = export_run(model, run, plan, tokenizer).gate
    assert gate["passed"]
    assert gate["rows"] >= 2


def write_tiny(name, directory):
    make_tokenizer(directory)
    tiny_model(name).save_pretrained(directory)
    return directory, Tokenizer.load(directory)


def documents(tokenizer):
    rows = []
    for number in range(4):
        prompt = tokenizer.encode(f"<|im_start|>user\nQuestion {number}?<|im_end|>\n<|im_start|>assistant\n")
        answer = tokenizer.encode("The licence says so. " * (1 + number) + "<|im_end|>")
        rows.append((prompt + answer, [False] * len(prompt) + [True] * len(answer), number))
    return rows


def step(loss, index):
    """One step with a learning rate that moves the model away from its base."""
    batch = micro_batch([index.document(number) for number in range(4)])
    parameters = trained_parameters(loss.model)
    before = [parameter.detach().clone() for parameter in parameters.values()]
    tensors = (torch.from_numpy(array) for array in (batch.tokens, batch.labels, batch.positions))
    sums = loss(*tensors, batch.lengths)
    (sums.loss_sum / sums.num_supervised).backward()
    torch.optim.AdamW(parameters.values(), lr=1e-2).step()
    assert any(not torch.equal(old, new) for old, new in zip(before, parameters.values(), strict=True))


def test_tiny_models_keep_the_mechanism():
    """More query heads than keys, both kinds of layers twice, windows shorter than a row, two of four experts."""
    olmo, mixtral = tiny_config("Olmo3ForCausalLM"), tiny_config("MixtralForCausalLM")
    assert olmo.num_attention_heads > olmo.num_key_value_heads
    assert sorted(olmo.layer_types) == ["full_attention"] * 2 + ["sliding_attention"] * 2
    assert olmo.sliding_window < 16
    assert (mixtral.num_local_experts, mixtral.num_experts_per_tok) == (4, 2)


def test_a_model_whose_tokens_see_later_ones_is_no_decoder():
    assert sees_later_tokens(tiny_model("BertGenerationDecoder"))
    assert not sees_later_tokens(tiny_model("LlamaForCausalLM"))

"""Models of each family with and without kernels: losses, gradients, and the operations in use."""

import copy
from typing import get_args

import pytest
import torch
import transformers

from tunesmith.configs.recipe import Operation
from tunesmith.configs.sections.method import Full, Lora
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.generate import generate
from tunesmith.inference.types import Sampling
from tunesmith.kernels import dispatch, rms_norm
from tunesmith.kernels.dispatch import Implementation, Kernels
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.parts import recompute_activations
from tunesmith.modeling.patching.adapted_block import adapter_of
from tunesmith.modeling.patching.fast import install_kernels, sizes_of
from tunesmith.modeling.patching.replacements import REPLACEMENTS, use_kernels

LENGTHS = [7, 1, 12]
FAMILIES = {
    "llama": (transformers.LlamaConfig, {"num_key_value_heads": 2}),
    "mistral": (transformers.MistralConfig, {"num_key_value_heads": 2, "sliding_window": 5}),
    "qwen2": (transformers.Qwen2Config, {"num_key_value_heads": 2}),
    "qwen3": (transformers.Qwen3Config, {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma": (transformers.GemmaConfig, {"num_key_value_heads": 1, "head_dim": 8}),
    "gpt2": (transformers.GPT2Config, {}),
    "phi3": (transformers.Phi3Config, {"num_key_value_heads": 2, "sliding_window": 5}),
}
EXPECTED = {
    "gemma": {"rms_norm", "geglu", "rope", "add_rms_norm"},
    "gpt2": {"layer_norm"},
    "phi3": {"rms_norm", "rope_packed", "swiglu_packed"},
}
LLAMA = {"rms_norm", "swiglu", "rope", "add_rms_norm", "norm_lora_linears", "gated_lora_linear"}


def make_model(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    kind, extra = FAMILIES[family]
    config = kind(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **extra,
    )
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="tunesmith_packed").float()


def with_method(model, method):
    adapted = apply_method(model, method)
    torch.manual_seed(1)
    for name, parameter in trained_parameters(adapted).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted


def outcome(model, kernels, **options):
    """Loss and gradients by name, dropout off."""
    loss_module = CausalLoss(model, kernels=kernels, **options).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    generator = torch.Generator().manual_seed(2)
    tokens, labels = (torch.randint(3, 101, (sum(LENGTHS),), generator=generator) for _ in range(2))
    labels[::4] = -100
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    sums = loss_module(tokens, labels, positions, LENGTHS)
    sums.loss_sum.backward()
    return sums.loss_sum.item(), {n: p.grad for n, p in trained_parameters(model).items()}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("method", [Lora(kind="lora", lora_rank=4), Full(kind="full")], ids=["lora", "full"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_kernels_give_the_losses_and_gradients_of_the_references(family, method, recompute):
    plain = with_method(make_model(family), method)
    fast = copy.deepcopy(plain)
    used = use_kernels(fast, kernels := Kernels())
    lora = method.kind == "lora"
    adapters = {"lora_linear"} if family != "gpt2" else used & {"lora_linear"}
    whole = {"trained_linear"} if family == "gemma" else {"trained_linear", "trained_embedding"}  # Gemma's is scaled
    assert used == EXPECTED.get(family, LLAMA) | (adapters if lora else whole)
    if recompute:
        recompute_activations(fast)
    expected, expected_gradients = outcome(plain, Kernels("off"))
    actual, gradients = outcome(fast, kernels)
    assert actual == pytest.approx(expected, rel=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        difference = (gradient - expected_gradients[name]).norm()
        assert difference <= 1e-4 * expected_gradients[name].norm() + 1e-7, name


def test_the_fused_block_is_used_only_for_supported_adapters(monkeypatch):
    """With dropout, or with a merged or disabled adapter, the module's own forward runs."""
    calls = []
    monkeypatch.setitem(
        dispatch.TABLE,
        "norm_lora_linears",
        [
            Implementation("spy", lambda *a: (calls.append(1), plain.function(*a))[1], lambda _: True),
            plain := dispatch.TABLE["norm_lora_linears"][-1],
        ],
    )
    model = with_method(make_model("llama"), Lora(kind="lora", lora_rank=4))
    use_kernels(model, kernels := Kernels())
    before, _ = outcome(model, kernels)
    assert len(calls) == 4  # two for each of two blocks
    calls.clear()
    with model.disable_adapter():
        off, _ = outcome_without_gradient(model, kernels)
    assert off != pytest.approx(before, rel=1e-4)
    model.merge_adapter()
    merged, _ = outcome_without_gradient(model, kernels)
    assert merged == pytest.approx(before, rel=1e-5)
    model.unmerge_adapter()
    assert not calls
    (layer, *_) = [module for name, module in model.named_modules() if name.endswith("q_proj")]
    assert adapter_of(layer) is not None
    for other in (Lora(kind="lora", lora_dropout=0.5), Lora(kind="lora", use_dora=True)):
        adapted = with_method(make_model("llama"), other)
        (layer, *_) = [module for name, module in adapted.named_modules() if name.endswith("q_proj")]
        assert adapter_of(layer) is None


def outcome_without_gradient(model, kernels):
    generator = torch.Generator().manual_seed(2)
    tokens, labels = (torch.randint(3, 101, (sum(LENGTHS),), generator=generator) for _ in range(2))
    labels[::4] = -100
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    with torch.no_grad():
        sums = CausalLoss(model, kernels=kernels).eval()(tokens, labels, positions, LENGTHS)
    return sums.loss_sum.item(), None


def test_kernels_do_not_change_generated_answers(tiny_llama):
    tokenizer = Tokenizer.load(tiny_llama, None)
    model = load_model(tiny_llama, dtype=torch.float32, attention="tunesmith_packed")
    model = with_method(model, Lora(kind="lora", lora_rank=4))
    prompt = tokenizer.encode("Licensed under the Apache License")
    before = generate(model, tokenizer, prompt, Sampling(12)).tokens
    use_kernels(model, Kernels())
    assert generate(model, tokenizer, prompt, Sampling(12)).tokens == before
    assert len(before) > 2


def test_every_operation_is_a_valid_recipe_value():
    assert set(get_args(Operation)) <= set(dispatch.TABLE)
    assert {name for known in REPLACEMENTS.values() for name in known.operations} <= set(get_args(Operation))


def test_sizes_of_a_model():
    model = with_method(make_model("qwen3"), Lora(kind="lora", lora_rank=4))
    sizes = sizes_of(model, "cpu", None)
    assert (sizes.hidden, sizes.inner, sizes.num_heads, sizes.num_key_heads, sizes.head_size) == (32, 48, 4, 2, 8)
    assert (sizes.vocab, sizes.rank, sizes.dtype, sizes.trains_head) == (101, 4, torch.float32, False)


def test_a_kernel_that_fails_the_parity_check_is_disabled(monkeypatch):
    def wrong(hidden, weight, eps, *, weight_offset=0.0):
        return rms_norm.rms_norm(hidden, weight, eps, weight_offset=weight_offset) * 1.001

    def failing(*_arguments):
        raise RuntimeError("no such device")

    def writing(gate, up):
        return gate.data.mul_(0.5) * up

    plain = with_method(make_model("llama"), Lora(kind="lora", lora_rank=4))
    good = install_kernels(copy.deepcopy(plain), Kernels(), device="cpu", compute_dtype=None)
    assert {p.operation for p in good} >= {"rms_norm", "rope", "swiglu", "norm_lora_linears", "linear_cross_entropy"}
    assert all(p.holds and p.difference < 1e-5 for p in good)
    assert sum(p.difference > 0 for p in good) >= 3

    for operation, function in (("rms_norm", wrong), ("norm_lora_linears", failing), ("swiglu", writing)):
        planted = Implementation("planted", function, lambda _: True)
        monkeypatch.setitem(dispatch.TABLE, operation, [planted, *dispatch.TABLE[operation]])
    fast = copy.deepcopy(plain)
    kernels = Kernels()
    results = {p.operation: p for p in install_kernels(fast, kernels, device="cpu", compute_dtype=None)}
    assert {name for name, p in results.items() if not p.holds} == {"rms_norm", "norm_lora_linears", "swiglu"}
    assert results["rms_norm"].difference == pytest.approx(1e-3, rel=0.1)
    assert "no such device" in results["norm_lora_linears"].fault
    assert "writes to its inputs" in results["swiglu"].fault
    expected, _ = outcome(plain, Kernels("off"))
    assert outcome(fast, kernels)[0] == pytest.approx(expected, rel=1e-6)


def test_ranks_agree_on_every_operation_whatever_kernels_their_host_has():
    """Each agreement is a collective: a host without kernels must take part in as many as the others."""
    agreements = []
    for kernels in (Kernels(), Kernels("off")):
        model, flags = with_method(make_model("llama"), Lora(kind="lora", lora_rank=4)), []
        compared = install_kernels(
            model, kernels, device="cpu", compute_dtype=None, agree=lambda bad, flags=flags: flags.append(bad) or bad
        )
        agreements.append((len(compared), flags))
    (with_kernels, flags), (without, flags_without) = agreements
    assert with_kernels > without
    assert flags == flags_without
    assert len(flags) >= with_kernels


def test_no_kernel_spans_the_modules_of_a_sharded_model(monkeypatch):
    def wrong(*arguments, **keywords):
        loss_sum, hits = dispatch.TABLE["linear_cross_entropy"][-1].function(*arguments, **keywords)
        return loss_sum * 1.001, hits

    model = with_method(make_model("llama"), Lora(kind="lora", lora_rank=4))
    good = install_kernels(model, Kernels(), device="cpu", compute_dtype=None, sharded=True)
    assert {parity.operation for parity in good if parity.holds} == {
        "linear_cross_entropy",
        "rms_norm",
        "rope",
        "swiglu",
    }
    replaced = {type(module).__name__ for module in model.modules() if "forward" in vars(module)}
    assert replaced == {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention"}
    planted = Implementation("planted", wrong, lambda _: True)
    monkeypatch.setitem(dispatch.TABLE, "linear_cross_entropy", [planted, *dispatch.TABLE["linear_cross_entropy"]])
    kernels = Kernels()
    bad = install_kernels(model, kernels, device="cpu", compute_dtype=None, sharded=True)
    assert [parity.operation for parity in bad if not parity.holds] == ["linear_cross_entropy"]
    assert kernels.choose("linear_cross_entropy", torch.zeros(2, 32)) is not wrong
    for name, parameter in model.named_parameters():  # as ZeRO-3 leaves them
        if "lora_" in name:
            parameter.data = parameter.data.new_empty(0)
    assert sizes_of(model, "cpu", None).rank == 1

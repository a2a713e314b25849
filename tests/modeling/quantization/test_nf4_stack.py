"""Experts in 4 bits: equal to a model whose weights are the values that bitsandbytes dequantizes, and only the experts
that a batch activates are dequantized."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.modeling.moe_models import fill, make_moe
from tests.rounding import effect_of_rounding, require_rounding_only
from tunesmith.configs.sections.method import Lora, QLora
from tunesmith.errors import InputError
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.four_bit_experts import round_to_four_bits
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.stream import stream_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.patching.replacements import use_kernels
from tunesmith.modeling.quantization.nf4_stack import Nf4Stack, stacks_of
from tunesmith.training.export.files import plain_weights

pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")

FAMILIES = ("Mixtral", "Qwen3Moe", "Qwen2Moe", "GptOss")
# Rows of whole blocks: otherwise bitsandbytes' own dequantization of a matrix differs on a CPU.
SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
WIDTH = {"Qwen3Moe": {"moe_intermediate_size": 64}, "Qwen2Moe": {
    "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
}}  # fmt: skip
LENGTHS = [7, 1, 12]
LORA = {"lora_rank": 3, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory):
    """Directory of a family's model, written once."""
    directories = {}

    def write(family, **options):
        if family not in directories:
            directories[family] = tmp_path_factory.mktemp(family)
            make_moe(family, **{**SIZES, **WIDTH.get(family, {}), **options}).save_pretrained(directories[family])
        return directories[family]

    return write


def packed_model(directory, *, double=True, dtype=torch.float32, targets: list[str] | str = "all-linear") -> Any:
    model = stream_model(directory, dtype=dtype, nf4=True, double_quantization=double)
    return adapted(model, QLora(kind="qlora", **{**LORA, "target_modules": targets}))


def adapted(model, method):
    model = apply_method(model, method)
    fill(model)
    return model


def reference_model(directory, *, double=True) -> Any:
    """The model with weights that bitsandbytes dequantized, in fp32, and the same adapters."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    model = load_model(directory, dtype=torch.float32)
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear) and "lm_head" not in path:
                matrices = [module.weight]
            else:
                own = module.named_parameters(recurse=False)
                matrices = [matrix for _, stack in own if stack.dim() == 3 for matrix in stack]
            for matrix in matrices:
                matrix.copy_(dequantize_4bit(*quantize_4bit(matrix, quant_type="nf4", compress_statistics=double)))
    return adapted(model, Lora(kind="lora", **LORA))


def loss_and_gradients(model) -> tuple[float, dict[str, Any]]:
    tokens_T = torch.randint(3, 97, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    positions_T = torch.cat([torch.arange(length) for length in LENGTHS])
    loss = CausalLoss(model).eval()(tokens_T, tokens_T.roll(-1), positions_T, LENGTHS).loss_sum
    loss.backward()
    return float(loss.detach()), {name: weight.grad for name, weight in trained_parameters(model).items()}


def results(model):
    loss, gradients = loss_and_gradients(model)
    return {"loss": torch.tensor([loss], dtype=torch.float64), **gradients}


@pytest.mark.parametrize(("family", "double"), [*((family, True) for family in FAMILIES), ("Mixtral", False)])
def test_loss_and_gradients_are_those_of_the_dequantized_weights(directory_of, family, double):
    """To the rounding of fp32, with the run's kernels."""
    model = packed_model(directory_of(family), double=double)
    use_kernels(model, Kernels("auto"))
    reference = reference_model(directory_of(family), double=double)
    require_rounding_only(results(model), *effect_of_rounding(reference.double(), results))


def test_frozen_experts_without_adapters_have_the_same_loss(directory_of):
    model = packed_model(directory_of("Mixtral"), targets=["q_proj"])
    loss, gradients = loss_and_gradients(model)
    assert all(gradient.any() for gradient in gradients.values())
    reference = load_model(directory_of("Mixtral"), dtype=torch.float32)
    round_to_four_bits(reference, double_quantization=True)
    reference = adapted(reference, Lora(kind="lora", **{**LORA, "target_modules": ["q_proj"]}))
    assert loss == pytest.approx(loss_and_gradients(reference)[0], rel=1e-6)


def test_only_active_experts_are_dequantized_and_again_in_the_backward_pass(directory_of):
    model = packed_model(directory_of("Mixtral"))
    dequantized = []
    for path, stack in stacks_of(model).items():
        stack.register_forward_pre_hook(lambda _, arguments, path=path: dequantized.append((path, arguments[0])))
    token = torch.tensor([[5]])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        logits = model(input_ids=token).logits
    assert len(dequantized) == len(set(dequantized)) == 2 * 2 * 2, "layers x projections x experts per token"
    forward, dequantized[:] = list(dequantized), []
    experts = {(64, 64), (128, 64), (64, 128)}
    assert not [t.shape for t in kept if tuple(t.shape) in experts and not t.requires_grad], "no matrix of an expert"
    logits.sum().backward()
    assert set(dequantized) <= set(forward)
    # The first layer's first projection has an input without gradient if nothing before it is trained; here q_proj is.
    assert len(dequantized) == len(forward)


def test_experts_are_quantized_one_by_one(directory_of, monkeypatch):
    from tunesmith.modeling.quantization import nf4

    sizes, quantize = [], nf4.quantize_4bit

    def noted(weight, **options):
        sizes.append(weight.numel())
        return quantize(weight, **options)

    monkeypatch.setattr(nf4, "quantize_4bit", noted)
    model = stream_model(directory_of("GptOss"), dtype=torch.bfloat16, nf4=True)
    assert sorted(sizes) == sorted([64 * 64, 2 * 64 * 64] * 4 * 2)
    stacks = stacks_of(model)
    assert len(stacks) == 4
    assert not [name for name, parameter in model.named_parameters() if parameter.dim() == 3]
    numbers = sum(torch.Size(stack.shape).numel() for stack in stacks.values())
    constants = 4 * (16 + 256 + 4 * (1 + 1))  # tables, and scales of scales: visible in a tiny model only
    size = sum(stack.num_bytes() for stack in stacks.values())
    assert size == numbers // 2 + numbers // 64 + 4 * constants


def test_kernels_give_the_values_of_bitsandbytes(directory_of):
    model = stream_model(directory_of("GptOss"), dtype=torch.bfloat16, nf4=True)
    expected = {path: stack.whole(torch.bfloat16) for path, stack in stacks_of(model).items()}
    assert "nf4_dequantise" in use_kernels(model, Kernels("auto"))
    for path, stack in stacks_of(model).items():
        assert isinstance(stack, Nf4Stack)
        assert "forward" in vars(stack)
        assert torch.equal(stack.whole(torch.bfloat16), expected[path])


@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss"])
def test_the_merged_model_is_the_adapter_on_the_dequantized_base(directory_of, family):
    model = packed_model(directory_of(family))
    merged = {name: weight() for name, weight in plain_weights(model.get_base_model(), torch.float32).items()}
    base = reference_model(directory_of(family)).get_base_model()
    expected = {name: weight() for name, weight in plain_weights(base, torch.float32).items()}
    assert merged.keys() == expected.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-7, msg=name)
    assert merged.keys() == load_model(directory_of(family), dtype=torch.float32).state_dict().keys()


def test_experts_with_a_forward_of_their_own_are_refused_with_their_share(directory_of):
    directory = directory_of("JetMoe", hidden_size=32, intermediate_size=48, head_dim=8)
    with pytest.raises(InputError, match=r"100\.0% of their weights would stay in 16 bits"):
        stream_model(directory, dtype=torch.float32, nf4=True)

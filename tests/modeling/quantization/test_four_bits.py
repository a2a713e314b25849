"""Adapters on frozen 4-bit weights: bitsandbytes' storage is read exactly, and the kernels agree with the modules' own
forward."""

import copy

import pytest
import torch

from tests.rounding import effect_of_rounding, require_rounding_only
from tunesmith.configs.sections.method import Lora, QLora
from tunesmith.kernels import dispatch, nf4
from tunesmith.kernels.dispatch import Implementation, Kernels
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.stream import stream_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.patching.adapted_block import adapter_of
from tunesmith.modeling.patching.fast import install_kernels
from tunesmith.modeling.patching.replacements import use_kernels
from tunesmith.modeling.quantization.four_bits import nf4_of

pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
from tunesmith.modeling.quantization.nf4 import dequantised

LENGTHS = [7, 1, 12]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block_size", [32, 64, 256])
@pytest.mark.parametrize("shape", [(96, 256), (33, 512), (1, 256)])
def test_weights_stored_by_bitsandbytes_are_read_exactly(shape, block_size, double):
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise
    from bitsandbytes.nn.modules import Params4bit

    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3.0
    options = {"requires_grad": False, "blocksize": block_size, "quant_type": "nf4", "compress_statistics": double}
    weight = Params4bit(numbers, **options).to("cpu")
    read = nf4_of(weight)
    assert read is not None
    assert (read.shape, read.block_size, read.dtype) == (shape, block_size, torch.float32)
    assert (read.scale_table_256 is not None) == double
    codes, state = weight.detach().as_subclass(torch.Tensor), weight.quant_state
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if double else state.absmax
    options = (state.code, block_size, shape, torch.float32)
    expected = _dequantize_4bit_compute(codes.reshape(-1), scales, *options).view(shape)
    assert torch.equal(dequantize_4bit(codes, state), expected)
    assert torch.equal(dequantised(weight, torch.float32), expected)
    assert (expected - numbers).norm() < 0.2 * numbers.norm()
    assert torch.equal(nf4.nf4_dequantise(read, torch.float32), expected)
    assert torch.equal(nf4.nf4_dequantise_cpu(read, torch.float32), expected)
    assert torch.equal(nf4.nf4_dequantise_cpu(read, torch.bfloat16), expected.bfloat16())


def test_other_weights_are_not_recognized_as_nf4():
    from bitsandbytes.nn.modules import Params4bit

    numbers = torch.randn(64, 64)
    rows_of_half_a_block = torch.randn(64, 32)
    assert nf4_of(Params4bit(rows_of_half_a_block, requires_grad=False, quant_type="nf4").to("cpu")) is None
    assert nf4_of(torch.nn.Parameter(numbers)) is None
    assert nf4_of(Params4bit(numbers, requires_grad=False, quant_type="nf4")) is None  # not quantized yet
    assert nf4_of(Params4bit(numbers, requires_grad=False, quant_type="fp4").to("cpu")) is None
    packed = Params4bit(numbers, requires_grad=False, quant_type="nf4").to("cpu")
    packed.quant_state.packing_format_for_cpu = True
    assert nf4_of(packed) is None


def make_model(directory, *, dropout=0.0, double=True, dtype=torch.float32):
    method = QLora(kind="qlora", lora_rank=4, double_quantization=double, lora_dropout=dropout)
    model = stream_model(
        directory, dtype=dtype, attention="tunesmith_packed", nf4=True, double_quantization=method.double_quantization
    )
    model = apply_method(model, method)
    torch.manual_seed(1)
    for name, parameter in trained_parameters(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def exact(model, directory, *, dropout=0.0):
    """The same model in fp64 and plain PyTorch: dense layers with the dequantized values of each 4-bit weight."""
    method = Lora(kind="lora", lora_rank=4, lora_dropout=dropout)
    wide = apply_method(stream_model(directory, dtype=torch.float32, attention="tunesmith_packed"), method).double()
    numbers = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            packed = nf4_of(numbers[name]) is not None
            parameter.copy_(dequantised(numbers[name], torch.float32) if packed else numbers[name])
    use_kernels(wide, Kernels("off"))  # transformers' own norms compute in fp32 for any dtype
    return wide


def outcome(model, kernels):
    loss_module = CausalLoss(model, kernels=kernels).train()
    generator = torch.Generator().manual_seed(2)
    tokens, labels = (torch.randint(3, 101, (sum(LENGTHS),), generator=generator) for _ in range(2))
    labels[::4] = -100
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    torch.manual_seed(3)
    sums = loss_module(tokens, labels, positions, LENGTHS)
    sums.loss_sum.backward()
    return {"loss": sums.loss_sum.detach()} | {n: p.grad for n, p in trained_parameters(model).items()}


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_kernels_differ_from_fp64_only_by_rounding(wide_llama, dropout, double):
    """With and without kernels the model differs from fp64 only by fp32 rounding."""
    plain, fast = (make_model(wide_llama, dropout=dropout, double=double) for _ in range(2))
    used = use_kernels(fast, kernels := Kernels())
    assert used >= {"lora_linear", "norm_lora_linears", "gated_lora_linear", "nf4_dequantise"}
    reference = exact(plain, wide_llama, dropout=dropout)
    expected, rounding = effect_of_rounding(reference, lambda model: outcome(model, Kernels("off")))
    for form in (outcome(plain, Kernels("off")), outcome(fast, kernels)):
        require_rounding_only(form, expected, rounding)


def test_a_4_bit_layer_runs_in_bf16(wide_llama):
    """Adapters in fp32 and a weight quantized from bf16, as on a GPU."""
    model = make_model(wide_llama, dtype=torch.bfloat16)
    (layer, *_) = [module for name, module in model.named_modules() if name.endswith("up_proj")]
    drawn = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(4)).bfloat16()
    results = {}
    for which, kernels in (("plain", Kernels("off")), ("fast", Kernels())):
        use_kernels(layer, kernels)
        x = drawn.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        gradients = torch.autograd.grad(y.float().cos().sum(), [x, *trained_parameters(layer).values()])
        results[which] = [y, *gradients]
    assert kernels.chosen("lora_linear", y) is not kernels.reference("lora_linear")
    for fast, plain in zip(results["fast"], results["plain"], strict=True):
        assert plain.norm() > 0.1
        assert fast.dtype == plain.dtype
        assert 0 < (fast.float() - plain.float()).norm() <= 2e-2 * plain.float().norm()


def test_no_dequantized_weight_is_saved_for_the_backward_pass(wide_llama):
    """The backward pass dequantizes the weights again."""
    model = make_model(wide_llama)
    use_kernels(model, kernels := Kernels())
    loss_module = CausalLoss(model, kernels=kernels).train()
    shapes = {nf4_of(p).shape for p in model.parameters() if nf4_of(p) is not None}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tensor.shape), tensor)[1], lambda t: t):
        loss_module(torch.arange(3, 90), torch.arange(3, 90), torch.arange(87), [87])
    assert len(kept) > 10
    assert not {tuple(shape) for shape in kept} & (shapes | {shape[::-1] for shape in shapes})


def test_kernels_are_checked_on_the_model_weights_and_a_wrong_one_is_disabled(wide_llama, monkeypatch):
    plain = make_model(wide_llama)
    fast = copy.deepcopy(plain)
    good = {p.operation: p for p in install_kernels(fast, Kernels(), device="cpu", compute_dtype=None)}
    assert {"nf4_dequantise", "lora_linear", "norm_lora_linears", "gated_lora_linear"} <= set(good)
    assert all(parity.holds and parity.difference < 1e-5 for parity in good.values())
    assert good["nf4_dequantise"].difference == 0.0
    assert good["norm_lora_linears"].difference > 0.0

    def wrong(weight, dtype):
        return nf4.nf4_dequantise(weight._replace(block_size=2 * weight.block_size), dtype)

    planted = Implementation("planted", wrong, lambda _: True)
    monkeypatch.setitem(dispatch.TABLE, "nf4_dequantise", [planted, *dispatch.TABLE["nf4_dequantise"]])
    monkeypatch.setattr("tunesmith.kernels.lora_linear.nf4_dequantise_cpu", wrong)
    fast, kernels = copy.deepcopy(plain), Kernels()
    results = {p.operation: p for p in install_kernels(fast, kernels, device="cpu", compute_dtype=None)}
    dequantizing = {"nf4_dequantise", "lora_linear", "norm_lora_linears", "gated_lora_linear"}
    assert {name for name, parity in results.items() if not parity.holds} == dequantizing
    assert dequantizing <= kernels.off
    expected, rounding = effect_of_rounding(exact(plain, wide_llama), lambda model: outcome(model, Kernels("off")))
    require_rounding_only(outcome(fast, kernels), expected, rounding)


def test_adapter_of_supports_4_bit_layers(wide_llama):
    model = make_model(wide_llama)
    (layer, *_) = [module for name, module in model.named_modules() if name.endswith("q_proj")]
    adapted = adapter_of(layer)
    assert adapted is not None
    assert isinstance(adapted.weight_OI, nf4.Nf4)
    with model.disable_adapter():
        assert adapter_of(layer) is None

"""Kernels that operate on weights: NF4, LoRA on a frozen layer, AdamW."""

import pytest
import torch
from against import DEVICE, RELATIVE, assert_matches, assert_near, drawn

from tunesmith.kernels import adamw, lora_linear, nf4

TABLE = torch.linspace(-1, 1, 16) ** 3
TABLE[8] = 0.0


def made_nf4(*shape, double=False, seed=0):
    """A 4-bit weight with random codes and scales."""
    generator = torch.Generator("cpu").manual_seed(seed)
    count = torch.Size(shape).numel()
    packed = torch.randint(0, 256, (-(-count // 2), 1), generator=generator, dtype=torch.uint8, device="cpu").to(DEVICE)
    blocks = -(-count // 64)
    table = TABLE.sort().values
    if not double:
        return nf4.Nf4(packed, torch.rand(blocks, generator=generator, device="cpu").to(DEVICE) + 0.1, table, shape)
    scales = torch.randint(0, 256, (blocks,), generator=generator, dtype=torch.uint8, device="cpu").to(DEVICE)
    outer = torch.rand(-(-blocks // 256), generator=generator)
    return nf4.Nf4(packed, scales, table, shape, 64, torch.linspace(-1, 1, 256), outer, torch.tensor(1.5), 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7, 31), (64, 96), (3, 17000)])
def test_nf4(shape, double, dtype):
    weight = made_nf4(*shape, double=double)
    actual, expected = nf4.nf4_dequantise_triton(weight, dtype), nf4.nf4_dequantise(weight, torch.float32)
    assert actual.shape == shape
    assert actual.dtype == dtype
    assert_near(actual, expected, RELATIVE[dtype])


@pytest.mark.parametrize("block_size", [64, 128, 2048, 4096])
def test_nf4_blocks_of_any_size(block_size):
    """A program holds several blocks, or one that is larger than its usual tile."""
    weight = made_nf4(5, 2000)
    scales = weight.scales[: -(-10000 // block_size)]
    weight = weight._replace(block_size=block_size, scales=scales)
    actual, expected = nf4.nf4_dequantise_triton(weight, torch.float32), nf4.nf4_dequantise(weight, torch.float32)
    assert_near(actual, expected, RELATIVE[torch.float32])


@pytest.mark.parametrize("double", [False, True])
def test_nf4_equals_bitsandbytes(double):
    functional = pytest.importorskip("bitsandbytes.functional")
    numbers = drawn(40, 128)  # whole blocks per row: otherwise bitsandbytes uses wrong scales on a CPU
    packed, state = functional.quantize_4bit(numbers, quant_type="nf4", compress_statistics=double)
    inner = state.state2 if double else None
    weight = nf4.Nf4(packed, state.absmax, state.code, tuple(state.shape), state.blocksize)
    if inner is not None:
        weight = weight._replace(
            scale_table_256=inner.code,
            scale_scales=inner.absmax,
            scale_offset=state.offset,
            scale_block_size=inner.blocksize,
        )
    expected = functional.dequantize_4bit(packed, state)
    assert_near(nf4.nf4_dequantise_triton(weight, torch.float32), expected, 1e-6)
    assert_near(nf4.nf4_dequantise(weight, torch.float32), expected, 1e-6)
    assert_near(expected, numbers, 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shape", "outputs", "rank"), [((1, 6), 5, 1), ((2, 37, 130), 131, 16), ((70, 31), 5, 24)])
def test_lora_linear(shape, outputs, rank, bias, dtype):
    inputs = [
        drawn(*shape, dtype=dtype),
        drawn(outputs, shape[-1], seed=1, dtype=dtype),
        *([drawn(outputs, seed=2, dtype=dtype)] if bias else []),
        drawn(rank, shape[-1], seed=3, dtype=dtype),
        drawn(outputs, rank, seed=4, dtype=dtype),
    ]

    def called(function):
        return lambda x, w, *rest: function(x, w, rest[0] if bias else None, *rest[-2:], 0.7)

    trained = [0, len(inputs) - 2, len(inputs) - 1]
    assert_matches(called(lora_linear.lora_linear), called(lora_linear.lora_linear_reference), inputs, trained)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("size", [(5, 128, 70), (3, 31, 9)])
def test_lora_linear_over_nf4(size, double):
    num_tokens, num_inputs, num_outputs = size
    weight = made_nf4(num_outputs, num_inputs, double=double)
    numbers = nf4.nf4_dequantise(weight, torch.float64)
    inputs = [drawn(num_tokens, num_inputs), drawn(16, num_inputs, seed=3), drawn(num_outputs, 16, seed=4)]

    def reference(x, a, b):
        return lora_linear.lora_linear_reference(x, numbers, None, a, b, 0.7)

    assert_matches(lambda x, a, b: lora_linear.lora_linear(x, weight, None, a, b, 0.7), reference, inputs)


OPTIONS = {"learning_rate": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize("size", [1, 1031, 4096])
def test_adamw_equals_torch(size):
    parameter, moments = drawn(size), [torch.zeros(size), torch.zeros(size)]
    expected = torch.nn.Parameter(parameter.double())
    optimizer = torch.optim.AdamW([expected], lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    reference, reference_moments = parameter.clone(), [torch.zeros(size), torch.zeros(size)]
    for step in range(1, 4):
        gradient = drawn(size, seed=step)
        before = gradient.clone()
        adamw.adamw_triton_(parameter, gradient, *moments, **OPTIONS, step=step)
        adamw.adamw_(reference, gradient, *reference_moments, **OPTIONS, step=step)
        assert torch.equal(gradient, before)
        expected.grad = gradient.double()
        optimizer.step()
    assert_near(parameter, expected.detach(), 1e-6)
    assert_near(reference, expected.detach(), 1e-6)


@pytest.mark.parametrize("size", [1, 256, 1031])
def test_adamw_in_8_bits(size):
    """The same codes as the reference, and close to the moments in fp32."""
    signed = torch.cat([-torch.logspace(0, -6, 127), torch.zeros(1), torch.logspace(-6, 0, 128)])
    tables = torch.stack([signed, torch.cat([torch.zeros(1), torch.logspace(-7, 0, 255)])])
    blocks = -(-size // 256)
    states = [
        [drawn(size), torch.full((2, size), 127, dtype=torch.uint8), torch.zeros(2, blocks), tables] for _ in range(2)
    ]
    wide, moments = drawn(size), [torch.zeros(size), torch.zeros(size)]
    for step in range(1, 4):
        gradient = drawn(size, seed=step)
        for function, (parameter, *rest) in zip((adamw.adamw_8bit_triton_, adamw.adamw_8bit_), states, strict=True):
            function(parameter, gradient, *rest, **OPTIONS, step=step)
        adamw.adamw_(wide, gradient, *moments, **OPTIONS, step=step)
    actual, expected = states
    assert_near(actual[0], expected[0], 1e-6)
    assert_near(actual[2], expected[2], 1e-6)
    assert (actual[1].int() - expected[1].int()).abs().max() <= 1  # values midway between two table entries
    assert (actual[1] == expected[1]).float().mean() > 0.99
    assert_near(actual[0], wide, 3e-2)
    assert not torch.equal(wide, drawn(size))

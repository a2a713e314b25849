"""Dequantization of published weights equals the formats' specifications, value by value."""

import pytest
import torch

from tests.modeling.quantized_checkpoints import dequantized_fp8, dequantized_mxfp4
from tunesmith.configs.plan import QuantizedWeights
from tunesmith.errors import InputError
from tunesmith.modeling.loading.dequantize import dequantized, fp8_weight, mxfp4_weight

EVERY_BYTE = torch.tensor([byte for byte in range(256) if byte & 127 != 127], dtype=torch.uint8)
"""Without NaN: zeros of both signs, subnormals, the largest values."""


def fp8_values(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = EVERY_BYTE[torch.randint(0, len(EVERY_BYTE), shape, generator=generator)]
    flat = values.view(-1)
    flat[: min(len(EVERY_BYTE), flat.numel())] = EVERY_BYTE[: flat.numel()]
    values[..., :2, :3] = 0
    return values.view(torch.float8_e4m3fn)


def extreme_scales(*shape: int) -> torch.Tensor:
    """From 1e-38, where products are subnormal in fp32, to 1e35."""
    generator = torch.Generator().manual_seed(1)
    return 10.0 ** (torch.rand(shape, generator=generator) * 73 - 38)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((256, 128), (128, 128)),
        ((130, 259), (128, 128)),
        ((5, 7), (2, 3)),
        ((3, 37, 29), (16, 8)),
        ((40, 24), (1, 24)),
        ((9, 70), (1, 32)),
    ],
)
def test_fp8_in_blocks_equals_the_specification(shape, block, dtype):
    values = fp8_values(*shape)
    scales = extreme_scales(*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    expected = dequantized_fp8(values, scales, block)
    assert torch.isfinite(expected).all()
    assert torch.equal(fp8_weight(values, scales, block, dtype), expected.to(dtype))
    assert not torch.equal(
        fp8_weight(values, scales.roll(1, -2 if block[1] == shape[1] else -1), block, dtype), expected
    )


def test_a_single_scale_and_scales_of_other_types():
    values = fp8_values(6, 8)
    whole = dequantized_fp8(values, torch.tensor([[0.37]]), (6, 8))
    for scale in (torch.tensor(0.37), torch.tensor([0.37]), torch.tensor([[0.37]])):
        assert torch.equal(fp8_weight(values, scale, None, torch.float32), whole)
    channels = extreme_scales(6, 1)
    assert torch.equal(fp8_weight(values, channels, None, torch.float32), dequantized_fp8(values, channels, (1, 8)))
    exponents = torch.tensor([[1, 127], [130, 240], [0, 97]], dtype=torch.uint8)
    powers = torch.tensor([[2.0 ** (int(byte) - 127) for byte in row] for row in exponents])
    expected = dequantized_fp8(values, powers, (2, 4))
    assert torch.equal(fp8_weight(values, exponents, (2, 4), torch.float32), expected)
    assert torch.equal(fp8_weight(values, powers.to(torch.float8_e8m0fnu), (2, 4), torch.float32), expected)
    rounded = powers.mul(1.2).to(torch.bfloat16)
    assert torch.equal(fp8_weight(values, rounded, (2, 4), torch.float32), dequantized_fp8(values, rounded, (2, 4)))


def test_whole_blocks_equal_transformers_own_dequantization():
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    values, scales = fp8_values(64, 96), extreme_scales(4, 3)
    expected = Fp8Dequantize(None)._dequantize_one(values, scales, torch.bfloat16)
    assert torch.equal(fp8_weight(values, scales, (16, 32), torch.bfloat16), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_equals_the_specification(dtype):
    """Every byte, with exponents from subnormal values to the largest that are finite."""
    blocks = torch.arange(256, dtype=torch.uint8).repeat(3, 5, 2, 1).view(3, 5, 32, 16)
    scales = torch.tensor([0, 1, 2, 64, 100, 127, 128, 200, 250, 251], dtype=torch.uint8).repeat(48).view(3, 5, 32)
    expected = dequantized_mxfp4(blocks, scales)
    actual = mxfp4_weight(blocks, scales, dtype)
    assert actual.shape == (3, 32 * 32, 5)
    assert torch.equal(actual, expected.to(dtype))
    assert not torch.equal(mxfp4_weight(blocks, scales.roll(1, -1), dtype), actual)
    assert torch.isnan(mxfp4_weight(blocks, torch.full_like(scales, 255), dtype)).all()


def test_tensors_of_another_format_are_rejected(tmp_path):
    quantized = QuantizedWeights(kind="fp8", name="FP8", block=[2, 4])
    plain, values = torch.ones(6, 8), fp8_values(6, 8)

    def read(**parts: torch.Tensor) -> torch.Tensor:
        return dequantized("w", parts, quantized, torch.float32, tmp_path)

    assert read(w=plain) is plain
    with pytest.raises(InputError, match="no scale"):
        read(w=values)
    with pytest.raises(InputError, match="float32 and a scale"):
        read(w=plain, w_scale_inv=torch.ones(3, 2))
    with pytest.raises(InputError, match=r"scales of shape \[2, 3\]"):
        read(w=values, w_scale_inv=torch.ones(2, 3))

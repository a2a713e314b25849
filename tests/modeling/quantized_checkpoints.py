"""Quantized checkpoints of tiny models, written from plain ones, with an independent dequantization in NumPy.

The dequantization follows the formats' specifications value by value, in float64, and shares no code with the product.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file

FP4_VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
"""E2M1, without the sign (OCP Microscaling Formats 1.0, table 5)."""


def e4m3_value(byte: int) -> float:
    """Of the type FP8 E4M3: no infinity, 0x7f and 0xff are NaN (arXiv:2209.05433, table 1)."""
    sign, exponent, mantissa = (-1) ** (byte >> 7), byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


E4M3 = numpy.array([e4m3_value(byte) for byte in range(256)])


def dequantized_fp8(values: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Return fp32 values [..., O, I] of FP8 values and the scales of their blocks."""
    numbers = E4M3[values.contiguous().view(torch.uint8).numpy()]
    factors = scales.float().numpy().astype(numpy.float64)
    rows, columns = (numpy.arange(size) // width for size, width in zip(values.shape[-2:], block, strict=True))
    return torch.from_numpy((numbers * factors[..., rows[:, None], columns[None, :]]).astype(numpy.float32))


def dequantized_mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return fp32 values [E, I, O] of blocks [E, O, G, 16], the first of two values in the lower half of a byte, and
    exponents [E, O, G]."""
    table = numpy.array(FP4_VALUES + [-value for value in FP4_VALUES])
    codes = blocks.numpy()
    numbers = numpy.stack([table[codes & 15], table[codes >> 4]], -1).reshape(*codes.shape[:-1], 32)
    numbers = numbers * 2.0 ** (scales.numpy().astype(numpy.float64) - 127)[..., None]
    return torch.from_numpy(numbers.reshape(*codes.shape[:2], -1).transpose(0, 2, 1).astype(numpy.float32).copy())


def quantized_fp8(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return FP8 values and scales of blocks: the largest value of a block is 448; those of a block of zeros are 1."""
    height, width = (-(-size // length) for size, length in zip(weight.shape[-2:], block, strict=True))
    scales = torch.ones(*weight.shape[:-2], height, width)
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for row in range(height):
        for column in range(width):
            part = (
                ...,
                slice(row * block[0], (row + 1) * block[0]),
                slice(column * block[1], (column + 1) * block[1]),
            )
            largest = weight[part].abs().amax((-2, -1))
            scales[..., row, column] = torch.where(largest > 0, largest / 448, 1.0)
            values[part] = (weight[part] / scales[..., row, column, None, None]).to(torch.float8_e4m3fn)
    return values, scales


def write_fp8(plain: Path, directory: Path, block: tuple[int, int], stated: dict[str, Any] | None = None) -> Path:
    """Write an FP8 checkpoint of a plain one. stated: quantization_config; None: that of DeepSeek V3. Returns the
    directory of the dequantized model, in fp32."""
    stated = stated or {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block)}
    suffix = "_scale_inv" if stated["quant_method"] == "fp8" else "_scale"

    def convert(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        values, scales = quantized_fp8(weight, block)
        return {name: values, name + suffix: scales}, dequantized_fp8(values, scales, block)

    return write(plain, directory, stated, lambda name: name.endswith("proj.weight"), convert)


def write_mxfp4(plain: Path, directory: Path) -> Path:
    """Write an MXFP4 checkpoint of a plain one of gpt-oss, with random blocks. Returns as `write_fp8`."""
    generator = torch.Generator().manual_seed(3)

    def convert(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        experts, inputs, outputs = weight.shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator).to(torch.uint8)
        scales = torch.randint(121, 125, blocks.shape[:-1], generator=generator).to(torch.uint8)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}, dequantized_mxfp4(blocks, scales)

    return write(
        plain, directory, {"quant_method": "mxfp4"}, lambda name: name.endswith("experts." + _last(name)), convert
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2] if name.endswith("_proj") else "-"


def write_four_bits(plain: Path, directory: Path, kind: str, double: bool, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint that bitsandbytes itself quantizes; the head, and one layer, stay plain. Returns as `write_fp8`."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    def convert(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        layer = Linear4bit(weight.shape[1], weight.shape[0], bias=False, compress_statistics=double, quant_type=kind)
        layer.weight = Params4bit(weight.to(dtype), False, compress_statistics=double, quant_type=kind, module=layer)
        layer.to("cpu")
        state = {f"{name.removesuffix('weight')}{key}": tensor for key, tensor in layer.state_dict().items()}
        layer.weight.quant_state.dtype = torch.float32  # of the result
        return state, dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()

    stated = {"quant_method": "bitsandbytes", "load_in_4bit": True, "_load_in_4bit": True, "bnb_4bit_quant_type": kind}
    stated["bnb_4bit_use_double_quant"] = double
    stated["llm_int8_skip_modules"] = ["lm_head", "model.layers.1.mlp.down_proj"]

    def chosen(name: str) -> bool:
        return name.endswith("proj.weight") and "layers.1.mlp.down_proj" not in name

    return write(plain, directory, stated, chosen, convert)


def write(
    plain: Path,
    directory: Path,
    stated: dict[str, Any],
    chosen: Callable[[str], bool],
    convert: Callable[[str, torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]],
) -> Path:
    """Write a copy of a model directory in which the chosen weights are converted, and next to it the plain model with
    their dequantized values, whose directory is returned."""
    expected = directory.with_name(f"{directory.name}-dequantized")
    shutil.copytree(plain, directory)
    shutil.copytree(plain, expected)
    stored: dict[str, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        stored[name] = values[name] = weight.float()
        if chosen(name):
            tensors, values[name] = convert(name, weight.float())
            del stored[name]
            stored |= tensors
    assert len(stored) > len(values)
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    save_file({k: v.contiguous() for k, v in values.items()}, expected / "model.safetensors", metadata={"format": "pt"})
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": stated}))
    return expected

"""Dequantization of published weights, one at a time. The formats: modeling/base_model/quantized_weights.py.

FP8 has its own function here: that of transformers 5.23 (`Fp8Dequantize`) refuses weights that are not whole blocks,
such as DeepSeek V3's `kv_a_proj_with_mqa` [576, 7168]. So has MXFP4, whose blocks some versions of transformers move to
a GPU.

O outputs, I inputs of a weight; experts are a first dimension.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from tunesmith.configs.plan import QuantizedWeights
from tunesmith.errors import InputError
from tunesmith.kernels.nf4 import Nf4, nf4_dequantise
from tunesmith.modeling.base_model.quantized_weights import KEY, STATES, require_scales

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
E2M1 = torch.tensor([sign * value for sign in (1, -1) for value in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)])
"""Values of the codes of MXFP4 (OCP Microscaling Formats 1.0, section 5.3.3)."""
E8M0 = torch.tensor([*(2.0 ** (byte - 127) for byte in range(255)), math.nan])
"""Values of the bytes of a scale (section 5.4.1)."""


def plain_config(directory: Path) -> Any:
    """Return the model configuration of a directory, without the quantization of its files. InputError if the installed
    transformers does not know it."""
    try:
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"the model's configuration cannot be read: {str(error).strip().splitlines()[0]}",
            where=str(directory / "config.json"),
            remedy="use a class of the installed transformers; code in the directory is never executed",
        ) from error
    for part in (config, config.get_text_config()):
        if hasattr(part, KEY):
            delattr(part, KEY)
    return config


def dequantized(
    name: str, parts: Mapping[str, Tensor], quantized: QuantizedWeights, dtype: torch.dtype, directory: Path
) -> Tensor:
    """Return a weight in `dtype` from the tensors that it is stored in.

    parts: by name, in the order of `stored_parts`; a single tensor is returned as it is. directory: for errors.
    InputError if the tensors are not of the format `quantized`.
    """
    values, *others = parts.values()
    if quantized.kind == "fp8" and (others or values.dtype in FP8):
        if not others or values.dtype not in FP8:
            what = f"{name} has the type {values.dtype} and {'a' if others else 'no'} scale, but config.json states FP8"
            raise InputError(what, where=str(directory), remedy="set model.base to the unquantized weights")
        require_scales(name, list(values.shape), list(others[0].shape), quantized, directory)
        return fp8_weight(values, others[0], quantized.block, dtype)
    if not others:
        return values
    if quantized.kind == "mxfp4":
        return mxfp4_weight(values, others[0], dtype)
    return four_bit_weight(name, parts, dtype, directory)


def fp8_weight(values_OI: Tensor, scales: Tensor, block: Sequence[int] | None, dtype: torch.dtype) -> Tensor:
    """Multiply FP8 values with their scales in fp32, and round once to `dtype`.

    scales: a single one, or [ceil(O / rows), ceil(I / columns)] for a block of rows and columns; None: [O, 1]. Of
    floating type, or the exponents of E8M0 as bytes.
    """
    factors = E8M0[scales.int()] if scales.dtype == torch.uint8 else scales.float()
    weight = values_OI.float()
    if factors.numel() == 1 or tuple(factors.shape[-2:]) == (1, 1):
        return weight.mul_(factors.reshape(()) if factors.numel() == 1 else factors).to(dtype)
    rows, columns = block or (1, weight.shape[-1])
    by_column = factors.repeat_interleave(columns, -1)[..., : weight.shape[-1]]
    if rows == 1:
        return weight.mul_(by_column).to(dtype)
    for index, first in enumerate(range(0, weight.shape[-2], rows)):
        weight[..., first : first + rows, :].mul_(by_column[..., index : index + 1, :])
    return weight.to(dtype)


def mxfp4_weight(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return experts [E, I, O] of blocks [E, O, G, 16], the first of two values in the lower half of a byte, and scales
    [E, O, G], both in bytes. Temporary memory is bounded by one expert."""
    num_experts, outputs, num_groups, half = blocks.shape
    weight = torch.empty(num_experts, 2 * half * num_groups, outputs, dtype=dtype)
    for expert, (bytes_OGh, scales_OG) in enumerate(zip(blocks, scales, strict=True)):
        codes = torch.stack((bytes_OGh & 15, bytes_OGh >> 4), -1).view(outputs, num_groups, 2 * half)
        values = E2M1[codes.int()].mul_(E8M0[scales_OG.int()][..., None])
        weight[expert] = values.view(outputs, -1).t()
    return weight


def four_bit_weight(name: str, parts: Mapping[str, Tensor], dtype: torch.dtype, directory: Path) -> Tensor:
    """Return a 4-bit weight of bitsandbytes. parts, directory: see `dequantized`."""
    try:
        own = {key.removeprefix(f"{name}."): tensor for key, tensor in parts.items()}
        state = json.loads(bytes(next(own[key[1:]] for key in STATES if key[1:] in own).tolist()))
        return nf4_dequantise(_packed(own[name], own, state), dtype)
    except (ValueError, KeyError, TypeError, StopIteration, RuntimeError, IndexError, AttributeError) as error:
        raise InputError(
            f"the 4-bit weight {name} cannot be read: {type(error).__name__}: {error}",
            where=str(directory),
            remedy="download the model again: its files are damaged, or of a later version of bitsandbytes",
        ) from error


def _packed(values: Tensor, own: Mapping[str, Tensor], state: Mapping[str, Any]) -> Nf4:
    """The layout of bitsandbytes' QuantState.from_dict. FP4 differs from NF4 in the table only."""
    double = "nested_blocksize" in state
    return Nf4(
        packed=values,
        scales=own["absmax"],
        table_16=own["quant_map"].float(),
        shape=tuple(state["shape"]),
        block_size=state["blocksize"],
        scale_table_256=own["nested_quant_map"] if double else None,
        scale_scales=own["nested_absmax"] if double else None,
        scale_offset=torch.tensor(float(state["nested_offset"])) if double else None,
        scale_block_size=state["nested_blocksize"] if double else 256,
    )

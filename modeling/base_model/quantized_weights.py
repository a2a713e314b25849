"""Quantized checkpoints: which formats of a `config.json` are read, and how each weight is stored. Never imports torch.

FP8 (E4M3 or E5M2, Micikevicius et al. 2022, arXiv:2209.05433): `X` in 8 bits and `X_scale_inv` (DeepSeek V3, section
3.3.2 of arXiv:2412.19437; Qwen 3) or `X_scale` (compressed-tensors) with one scale per block, output channel or tensor.
MXFP4 (OCP Microscaling Formats 1.0; gpt-oss): `X_blocks` with 16 bytes for 32 values, `X_scales` with their exponents.
bitsandbytes in 4 bits: `X`, and tensors whose names begin with `X.` (QuantState.as_dict).

O outputs, I inputs, E experts, G blocks of 32 values.
"""

import json
from collections.abc import Iterable, Mapping
from math import ceil
from pathlib import Path
from typing import Any

from tunesmith.configs.plan import QuantizedWeights
from tunesmith.configs.sections.method import Full, LastLayers, Lora, QLora
from tunesmith.configs.tasks import TASKS
from tunesmith.errors import InputError
from tunesmith.modeling.base_model.tensor_files import tensor_locations
from tunesmith.modeling.base_model.weight_files import Shapes, read_object

KEY = "quantization_config"
STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
"""Names of the tensor that describes a weight of bitsandbytes, as JSON in bytes, after the weight's name."""
MXFP4_BLOCK = 32
_FP8_SCALES = ("_scale_inv", "_scale")
_OF_ACTIVATIONS = (".input_scale", ".output_scale", ".activation_scale", ".k_scale", ".v_scale", ".q_scale")
_ORIGINAL = "set model.base to the repository with the unquantized weights, from which this one was converted"
_DAMAGED = "download the model again: config.json and the weights are of different models"


def quantized_weights(directory: Path) -> QuantizedWeights | None:
    """Return how the weights of a model directory are quantized; None if they are not. InputError if it is unknown."""
    path = directory / "config.json"
    return format_of(read_object(path), path)


def format_of(config: Mapping[str, Any], path: Path) -> QuantizedWeights | None:
    """Return the format that a configuration states; None: not quantized. path: of config.json, for the error.

    InputError if weights of this format cannot be trained and merged exactly, with the reason.
    """
    text = config.get("text_config")
    stated = config.get(KEY)
    if stated is None and isinstance(text, Mapping):
        stated = text.get(KEY)
    if stated is None:
        return None
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    if method is None and isinstance(stated, dict) and (stated.get("load_in_4bit") or stated.get("load_in_8bit")):
        method = "bitsandbytes"  # files of early versions
    read = _READERS.get(str(method))
    quantized = read(stated) if read is not None else None
    if quantized is None:
        raise InputError(
            f"the weights are quantized ({_shown(stated, method)}): in this format they cannot be trained, "
            "and an adapter cannot be merged into them exactly",
            where=f"{path}: {KEY}",
            remedy=f"{_ORIGINAL}; FP8, MXFP4 and 4 bits of bitsandbytes are read",
        )
    return quantized


def require_trainable(
    quantized: QuantizedWeights | None, method: Full | LastLayers | Lora, task: str, path: Path
) -> None:
    """Raise InputError if a method or a task cannot start from weights of this format. path: of config.json."""
    if quantized is None:
        return
    if TASKS[task].model != "causal":
        raise InputError(
            f"the weights are quantized ({quantized.name}), which the task {task} does not read",
            where=f"{path}: {KEY}",
            remedy=_ORIGINAL,
        )
    if quantized.kind == "bitsandbytes" and not isinstance(method, QLora):
        raise InputError(
            f"the weights are quantized in 4 bits ({quantized.name}), which only method.kind: qlora trains on",
            where=f"{path}: {KEY}",
            remedy=f"set method.kind: qlora, which keeps them as they are; for {method.kind}, {_ORIGINAL}",
        )


def require_plain(quantized: QuantizedWeights | None, path: Path) -> None:
    """Raise InputError for a multimodal checkpoint with quantized weights: an export carries the other tensors through,
    and would mix formats. path: of config.json."""
    if quantized is not None:
        raise InputError(
            f"the checkpoint is multimodal and its weights are quantized ({quantized.name}), which cannot be exported",
            where=f"{path}: {KEY}",
            remedy=_ORIGINAL,
        )


def require_experts_not_in_4_bits(quantized: QuantizedWeights | None, path: Path) -> None:
    """Raise InputError for a mixture of experts in 4 bits of bitsandbytes: it could not be kept as it is published.
    path: of config.json."""
    if quantized is not None and quantized.kind == "bitsandbytes":
        raise InputError(
            f"the weights are quantized ({quantized.name}) and have experts, which would not be kept as published",
            where=f"{path}: {KEY}",
            remedy=f"{_ORIGINAL}; method.kind: qlora quantizes its experts to 4 bits",
        )


def stored_parts(names: Iterable[str], quantized: QuantizedWeights | None) -> dict[str, tuple[str, ...]]:
    """Return the tensors that each weight is stored in, by the weight's name: its numbers, then its scales.

    names: of all tensors in the files. A weight that is not quantized is stored in one tensor of its name.
    """
    stored = set(names)
    if quantized is None:
        return {name: (name,) for name in stored}
    parts: dict[str, tuple[str, ...]]
    if quantized.kind == "mxfp4":
        packed = {name[: -len("_blocks")] for name in stored if name.endswith("_blocks")}
        parts = {name: (f"{name}_blocks", f"{name}_scales") for name in packed if f"{name}_scales" in stored}
    elif quantized.kind == "fp8":
        parts = {
            name: (name, name + suffix)
            for suffix in reversed(_FP8_SCALES)
            for name in stored
            if name + suffix in stored
        }
        stored = {name for name in stored if not name.endswith(_OF_ACTIVATIONS)}
    else:
        owners = [name.removesuffix(state) for name in stored for state in STATES if name.endswith(state)]
        parts = {name: (name,) for name in owners if name in stored}
        for name in sorted(stored):
            if (owner := _owner(name, parts)) is not None:
                parts[owner] += (name,)
    used = {name for tensors in parts.values() for name in tensors}
    return {name: (name,) for name in stored - used} | parts


def _owner(name: str, weights: Mapping[str, Any]) -> str | None:
    """The weight that a tensor of bitsandbytes belongs to: its name up to the last or second last dot."""
    shorter = name.rpartition(".")[0]
    return next((owner for owner in (shorter, shorter.rpartition(".")[0]) if owner in weights and owner != name), None)


def dequantized_shapes(shapes: Shapes, quantized: QuantizedWeights | None, directory: Path) -> Shapes:
    """Return the shape of each weight after dequantization. shapes: of the tensors in the files of `directory`.

    InputError if scales are missing or are not those of the weight's blocks.
    """
    if quantized is None:
        return shapes
    parts = stored_parts(shapes, quantized)
    states = {}
    if quantized.kind == "bitsandbytes":
        located = tensor_locations(directory)
        states = {name: b"".join(at.chunks()) for name, at in located.items() if name.endswith(STATES)}
    plain: Shapes = {}
    for name in sorted(parts):
        first, *others = parts[name]
        plain[name] = shapes[first]
        if quantized.kind == "fp8" and others:
            require_scales(name, shapes[first], shapes[others[0]], quantized, directory)
        elif quantized.kind == "mxfp4" and others:
            plain[name] = _mxfp4_shape(name, shapes[first], shapes[others[0]], directory)
        elif others:
            state = next(other for other in others if other.endswith(STATES))
            plain[name] = _state_shape(states[state], state, directory)
    return plain


def require_scales(
    name: str, shape: list[int], scale_shape: list[int], quantized: QuantizedWeights, directory: Path
) -> None:
    """Raise InputError if the scales of an FP8 weight are not one per block. Blocks at the edges may be smaller."""
    if scale_shape == [] or set(scale_shape) == {1} or list(scale_shape[-2:]) == [1, 1]:
        return
    block = quantized.block or [1, shape[-1]]
    expected = [*shape[:-2], *(ceil(size / width) for size, width in zip(shape[-2:], block, strict=True))]
    if list(scale_shape) != expected:
        raise InputError(
            f"{name} of shape {shape} has scales of shape {list(scale_shape)}; blocks of {block[0]} x {block[1]} "
            f"have {expected}",
            where=str(directory),
            remedy=_DAMAGED,
        )


def _mxfp4_shape(name: str, blocks: list[int], scales: list[int], directory: Path) -> list[int]:
    """[E, I, O] of blocks [E, O, G, 16]: the model holds the experts transposed."""
    if len(blocks) != 4 or blocks[-1] != MXFP4_BLOCK // 2 or blocks[:-1] != scales:
        raise InputError(
            f"{name} has blocks of shape {blocks} and scales of shape {scales}; in MXFP4 they are [E, O, G, 16] and "
            "[E, O, G]",
            where=str(directory),
            remedy=_DAMAGED,
        )
    return [blocks[0], blocks[2] * MXFP4_BLOCK, blocks[1]]


def _state_shape(content: bytes, name: str, directory: Path) -> list[int]:
    try:
        shape = json.loads(content)["shape"]
        if isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape):
            return shape
        problem = f"the shape is {shape}"
    except (ValueError, KeyError, TypeError) as error:
        problem = str(error)
    raise InputError(f"{name} cannot be read: {problem}", where=str(directory), remedy="download the model again")


def _fp8(stated: dict[str, Any]) -> QuantizedWeights | None:
    block = stated.get("weight_block_size")
    if block is None:
        return QuantizedWeights(kind="fp8", name="FP8 with a scale per tensor")
    return _in_blocks(block)


def _in_blocks(block: Any) -> QuantizedWeights | None:
    if not isinstance(block, list) or len(block) != 2 or any(type(size) is not int or size < 1 for size in block):
        return None
    return QuantizedWeights(kind="fp8", name=f"FP8 in blocks of {block[0]} x {block[1]}", block=block)


def _compressed(stated: dict[str, Any]) -> QuantizedWeights | None:
    """compressed-tensors: groups of modules, each with a scheme. Only one scheme, of floats in 8 bits."""
    groups = stated.get("config_groups")
    schemes = [group.get("weights") or {} for group in groups.values()] if isinstance(groups, dict) else []
    sparsity = (stated.get("sparsity_config") or {}).get("format", "dense")
    if not schemes or sparsity != "dense" or (stated.get("transform_config") or {}).get("config_groups"):
        return None
    kinds = {(s.get("type"), s.get("num_bits"), s.get("strategy"), str(s.get("block_structure"))) for s in schemes}
    scheme = schemes[0]
    if len(kinds) > 1 or (scheme.get("type"), scheme.get("num_bits")) != ("float", 8):
        return None
    if scheme.get("strategy") == "block":
        return _in_blocks(scheme.get("block_structure"))
    unit = {"tensor": "tensor", "channel": "output channel"}.get(str(scheme.get("strategy")))
    return unit and QuantizedWeights(kind="fp8", name=f"FP8 with a scale per {unit}")  # type: ignore[return-value]


def _mxfp4(_stated: dict[str, Any]) -> QuantizedWeights:
    return QuantizedWeights(kind="mxfp4", name=f"MXFP4 in blocks of {MXFP4_BLOCK}")


def _bitsandbytes(stated: dict[str, Any]) -> QuantizedWeights | None:
    kind = stated.get("bnb_4bit_quant_type", "fp4")
    if not stated.get("load_in_4bit", stated.get("_load_in_4bit")) or kind not in ("nf4", "fp4"):
        return None
    double = ", double quantization" if stated.get("bnb_4bit_use_double_quant") else ""
    return QuantizedWeights(kind="bitsandbytes", name=f"{kind.upper()} of bitsandbytes{double}")


_READERS = {"fp8": _fp8, "compressed-tensors": _compressed, "mxfp4": _mxfp4, "bitsandbytes": _bitsandbytes}
"""Readers of `quantization_config` by its `quant_method`; each returns None for a form that is not supported."""


def _shown(stated: Any, method: Any) -> str:
    """What a configuration states, in a few words."""
    if not isinstance(stated, dict) or method is None:
        return "config.json does not state the quant_method"
    details = [str(stated.get("format") or "")]
    details += [f"{stated[key]} bits" for key in ("bits", "w_bit", "nbits") if isinstance(stated.get(key), int)]
    if stated.get("load_in_8bit"):
        details.append("8 bits")
    known = ", ".join(detail for detail in details if detail)
    return f"quant_method {method}" + (f" ({known})" if known else "")

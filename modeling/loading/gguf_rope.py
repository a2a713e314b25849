"""The scaling of rotary embeddings in a GGUF file, as the `rope_parameters` of transformers, which does not read it.

llama.cpp divides the frequencies by `rope_freqs` (Llama 3) or by `rope_factors_short` and `rope_factors_long` (Phi-3),
and by a factor for linear and YaRN scaling. What has no exact equivalent is rejected.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.errors import InputError

FREQUENCIES, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
TENSORS = (FREQUENCIES, SHORT, LONG)
_CARRIED = ("type", "factor", "original_context_length", "finetuned", "attn_factor", "yarn_attn_factor")
_CARRIED += ("yarn_ext_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Constants of all Llama 3 models; the factor differs. llama.cpp's default values, too."""


def rope_scaling(
    values: Mapping[str, Any], tensors: Mapping[str, Sequence[float]], *, theta: float, context: int
) -> dict[str, Any]:
    """Return the `rope_parameters` to add to the model's configuration; empty without scaling.

    values: of the keys that start with `ARCHITECTURE.rope.`, without this prefix. tensors: those of TENSORS that the
    file has. theta: base of the frequencies. context: length in tokens. InputError for scaling that transformers does
    not compute.
    """
    scaling = {key.removeprefix("scaling."): value for key, value in values.items() if key.startswith("scaling.")}
    if unknown := sorted(scaling.keys() - set(_CARRIED)):
        raise _rejected(f"the key rope.scaling.{unknown[0]}")
    factor = float(scaling.get("factor") or values.get("scale_linear") or 1.0)
    kind = scaling.get("type") or "linear"  # llama.cpp's default, without effect if the factor is 1
    original = int(scaling.get("original_context_length") or context)
    if tensors:
        if factor != 1.0 and kind != "none":
            raise _rejected(f"{sorted(tensors)[0]} together with {kind} scaling")
        return _by_tensor(tensors, scaling, theta, original, context)
    if kind == "none" or (factor == 1.0 and kind in ("linear", "yarn")):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(scaling, factor, original)
    raise _rejected(f"{kind} scaling without {LONG}" if kind == "longrope" else f"{kind} scaling")


def _by_tensor(
    tensors: Mapping[str, Sequence[float]], scaling: Mapping[str, Any], theta: float, original: int, context: int
) -> dict[str, Any]:
    if FREQUENCIES in tensors:
        if len(tensors) > 1:
            raise _rejected(f"{FREQUENCIES} together with {SHORT}")
        return _llama3_or_equal(list(tensors[FREQUENCIES]), theta, context)
    if SHORT not in tensors or LONG not in tensors:
        raise _rejected(f"{next(iter(tensors))} alone")
    attention = {"attention_factor": float(scaling["attn_factor"])} if "attn_factor" in scaling else {}
    return {
        "rope_type": "longrope",
        "short_factor": list(tensors[SHORT]),
        "long_factor": list(tensors[LONG]),
        "original_max_position_embeddings": original,
        "factor": context / original,
        **attention,
    }


def _llama3_or_equal(divisors: list[float], theta: float, context: int) -> dict[str, Any]:
    """Llama 3's scaling if it gives these divisors. Any others are exactly longrope with the same factors for short and
    long sequences."""
    factor = round(max(divisors), 4)
    if all(
        math.isclose(divisor, expected, rel_tol=1e-5)
        for divisor, expected in zip(divisors, llama3_divisors(theta, len(divisors), factor), strict=True)
    ):
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    return {
        "rope_type": "longrope",
        "short_factor": divisors,
        "long_factor": divisors,
        "original_max_position_embeddings": context,
        "attention_factor": 1.0,
        "factor": 1.0,
    }


def llama3_divisors(
    theta: float, count: int, factor: float, bounds: tuple[float, float, float] = tuple(_LLAMA3.values())
) -> list[float]:
    """Return what Llama 3's scaling divides each of `count` frequencies by: long waves by the factor, short ones by 1,
    those between by an interpolation. bounds: low_freq_factor, high_freq_factor and the original context."""
    low, high, original = bounds
    divisors = []
    for number in range(count):
        wave = 2 * math.pi * theta ** (number / count)
        smooth = min(1.0, max(0.0, (original / wave - low) / (high - low)))
        divisors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return divisors


def _yarn(scaling: Mapping[str, Any], factor: float, original: int) -> dict[str, Any]:
    for key, neutral in (("attn_factor", 1), ("yarn_attn_factor", 1), ("yarn_log_multiplier", 0)):
        if scaling.get(key, neutral) != neutral:
            raise _rejected(f"the key rope.scaling.{key}")
    if scaling.get("yarn_ext_factor", 1.0) not in (1.0, -1.0):  # -1: llama.cpp's sign for its default, 1
        raise _rejected("the key rope.scaling.yarn_ext_factor")
    betas = {key: float(scaling[f"yarn_{key}"]) for key in ("beta_fast", "beta_slow") if f"yarn_{key}" in scaling}
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **betas}


def rotated_part(config: Any, num_rotated: int | None) -> dict[str, Any]:
    """Return the `rope_parameters` for a model that rotates only the first values of each head; empty if all are."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if num_rotated in (None, size):
        return {}
    if config.model_type != "phi3":
        raise _rejected(f"the key rope.dimension_count: {num_rotated} of {size} values of a head")
    return {"partial_rotary_factor": num_rotated / size}


def _rejected(what: str) -> InputError:
    return InputError(
        f"its rotary embedding cannot be carried over: {what}",
        remedy="use the model's Hugging Face directory instead; without the scaling, the model would be another one",
    )

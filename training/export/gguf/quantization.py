"""The quantizations that a GGUF file is written in, and the type of each tensor. Quantizing itself: gguf's numpy code
for F16, BF16 and Q8_0, and llama.cpp's own for the K-quants, which has no other implementation here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from tunesmith.errors import InputError

Quantizer = Callable[[np.ndarray, Type], np.ndarray]
"""fp32 [rows, columns] to bytes [rows, bytes per row]."""


@dataclass(frozen=True)
class Quantization:
    """name: as on the command line. file_type: of the header. matrix: the type of most matrices. max_mean_kl: limit of
    the mean Kullback-Leibler divergence from the exported model, in nats per token; None: no limit.
    max_perplexity_ratio: of the file's perplexity to the exported model's. exact: greedy answers must be equal, but for
    ties."""

    name: str
    file_type: LlamaFileType
    matrix: Type
    max_mean_kl: float | None
    max_perplexity_ratio: float
    exact: bool = False

    @property
    def is_k_quant(self) -> bool:
        """Whether llama.cpp's quantizer is needed."""
        return self.matrix in (Type.Q4_K, Type.Q6_K)


# Measured on SmolLM2-135M by llama.cpp, whose key-value cache is F16: docs/leaving.md.
QUANTIZATIONS = {
    known.name: known
    for known in (
        Quantization("f32", LlamaFileType.ALL_F32, Type.F32, 1e-3, 1.01, exact=True),
        Quantization("f16", LlamaFileType.MOSTLY_F16, Type.F16, 1e-3, 1.01, exact=True),
        Quantization("bf16", LlamaFileType.MOSTLY_BF16, Type.BF16, 0.01, 1.02),
        Quantization("q8_0", LlamaFileType.MOSTLY_Q8_0, Type.Q8_0, 0.01, 1.02),
        Quantization("q6_k", LlamaFileType.MOSTLY_Q6_K, Type.Q6_K, 0.05, 1.05),
        Quantization("q4_k_m", LlamaFileType.MOSTLY_Q4_K_M, Type.Q4_K, None, 1.10),
    )
}

_FALLBACKS = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
"""llama.cpp's types for rows that are not a multiple of 256 values."""


def quantization_of(name: str) -> Quantization:
    """Return the quantization of a name. Raises InputError if it is unknown."""
    if name not in QUANTIZATIONS:
        raise InputError(f"unknown value {name!r}", where="--quantization", remedy=f"use {', '.join(QUANTIZATIONS)}")
    return QUANTIZATIONS[name]


def tensor_type(
    name: str, shape: tuple[int, ...], quantization: Quantization, *, num_blocks: int, tied: bool, eighty_grouped: bool
) -> Type:
    """Return the type of a tensor, as convert_hf_to_gguf and llama-quantize choose it.

    shape: as in torch. tied: the head is the token embedding. eighty_grouped: the model has 80 blocks with grouped
    queries, whose small value matrices llama.cpp gives more bits.
    """
    if len(shape) < 2 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return Type.F32
    kind = quantization.matrix
    if quantization.name == "q4_k_m":
        kind = _mixed(name, num_blocks, tied=tied, eighty_grouped=eighty_grouped)
    elif quantization.is_k_quant and _is_head(name, tied) and shape[-1] % 256:
        kind = Type.Q8_0
    columns = shape[-1]
    if columns % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = Type.Q8_0 if _is_head(name, tied) else _FALLBACKS.get(kind, kind)
    return kind if columns % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Type.F16


def _mixed(name: str, num_blocks: int, *, tied: bool, eighty_grouped: bool) -> Type:
    """The mixture Q4_K_M: more bits for the head, and for values and feed-forward outputs of some blocks."""
    if _is_head(name, tied):
        return Type.Q6_K
    has_values = ".attn_v." in name or ".attn_qkv." in name
    if has_values or ".ffn_down." in name:
        if _gets_more_bits(int(name.split(".")[1]), num_blocks):
            return Type.Q6_K
        return Type.Q5_K if eighty_grouped and has_values else Type.Q4_K
    return Type.Q4_K


def _is_head(name: str, tied: bool) -> bool:
    return name == "output.weight" or (tied and name == "token_embd.weight")


def _gets_more_bits(block: int, num_blocks: int) -> bool:
    eighth = num_blocks // 8
    return block < eighth or block >= 7 * num_blocks // 8 or (block - eighth) % 3 == 2


def quantized(weight: np.ndarray, kind: Type, quantizer: Quantizer | None) -> np.ndarray:
    """Return an fp32 tensor in the given type. quantizer: llama.cpp's, needed for types that gguf cannot write."""
    if kind in (Type.F32, Type.F16, Type.BF16, Type.Q8_0):
        return gguf.quants.quantize(weight, kind)
    assert quantizer is not None  # as `tensor_type` gives such types only to K-quants
    return quantizer(np.ascontiguousarray(weight, dtype=np.float32), kind)


def num_bytes(shape: tuple[int, ...], kind: Type) -> int:
    """Bytes of a tensor in the given type."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // values * size

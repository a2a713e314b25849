"""Adapter to PyTorch's variable-length flash attention: all documents of a stream in one launch per layer.

Two entry points compute the same: `torch.nn.attention.varlen.varlen_attn` (torch 2.12 and later; it has no dropout) and
the operator beneath it, `torch.ops.aten._flash_attention_forward`, which also has a derivative. FlashAttention-2 (Dao
2023, arXiv:2307.08691): fp16 and bf16, compute capability 8.0 and later, head sizes up to 256.

N documents, T tokens of all queries, S tokens of all keys, H query heads, K key and value heads (H a multiple of K), D
head size.
"""

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypedDict

import torch
from torch import Tensor

from tunesmith.kernels.language import product_type
from tunesmith.kernels.resources import FLASH_CAPABILITY, FLASH_LARGEST_HEAD

try:
    from torch.nn.attention.varlen import varlen_attn as _varlen_attn
except ImportError:
    _varlen_attn = None

_DTYPES = (torch.float16, torch.bfloat16)


class AttentionOptions(TypedDict, total=False):
    """Keyword arguments of `packed_attention`; all but the last two also of `varlen_attention`."""

    scale: float | None
    dropout: float
    causal: bool
    window: int | None
    softcap: float | None
    sinks: Tensor | None


class Documents:
    """Boundaries of the documents of one stream. Created once per micro-batch and shared by all layers.

    lengths: tokens of each document; documents without tokens are left out. longest: tokens of the longest. num_tokens:
    of all.
    """

    def __init__(self, lengths: Sequence[int]):
        self.lengths = [length for length in lengths if length]
        self.longest = max(self.lengths, default=0)
        self.num_tokens = sum(self.lengths)
        self._offsets: dict[torch.device, Tensor] = {}
        self._positions: dict[torch.device, Tensor] = {}
        self._chunks: dict[int, Documents] = {}

    def offsets(self, device: torch.device) -> Tensor:
        """Return the first token of each document and the end of the last, int32 [N + 1]; copied to a device once."""
        if device not in self._offsets:
            offsets = [0]
            for length in self.lengths:
                offsets.append(offsets[-1] + length)
            self._offsets[device] = torch.tensor(offsets, dtype=torch.int32, device=device)
        return self._offsets[device]

    def positions(self, device: torch.device) -> Tensor:
        """Return the position of each token in its document, int64 [T]; copied to a device once."""
        if device not in self._positions:
            positions = [torch.arange(length) for length in self.lengths]
            self._positions[device] = torch.cat(positions or [torch.arange(0)]).to(device)
        return self._positions[device]

    def chunks(self, size: int) -> "Documents":
        """Return the chunks of `size` tokens of all documents, the last of each document with the rest: with chunked
        attention (Llama 4), they are documents of their own."""
        if size >= self.longest:
            return self
        if size not in self._chunks:
            lengths = [min(size, length - start) for length in self.lengths for start in range(0, length, size)]
            self._chunks[size] = Documents(lengths)
        return self._chunks[size]


def varlen_attention(
    query_THD: Tensor,
    key_SKD: Tensor,
    value_SKD: Tensor,
    queries: Documents,
    keys: Documents,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    causal: bool = True,
    window: int | None = None,
) -> Tensor:
    """Compute softmax(scale q k^T) v, each document of the queries with the same document of the keys.

    query: [T, H, D]; key, value: [S, K, D]; fp16 or bf16 on CUDA, with stride 1 along D. causal: the last query of a
    document is aligned with its last key, so that the keys may begin with a cached prefix. window: a token attends to
    itself and at most window - 1 earlier tokens. Returns [T, H, D].
    """
    left = -1 if window is None or window >= keys.longest else window - 1
    right = 0 if causal else -1
    offsets = queries.offsets(query_THD.device), keys.offsets(query_THD.device)
    if dropout == 0.0 and _has_windows_and_groups():
        return _varlen_attn(  # type: ignore[misc]
            query_THD,
            key_SKD,
            value_SKD,
            *offsets,
            queries.longest,
            keys.longest,
            scale=scale,
            window_size=(left, right),
            enable_gqa=query_THD.shape[1] != key_SKD.shape[1],
        )
    return torch.ops.aten._flash_attention_forward(
        query_THD,
        key_SKD,
        value_SKD,
        *offsets,
        queries.longest,
        keys.longest,
        dropout,
        causal and left < 0,
        False,
        scale=scale,
        window_size_left=left,
        window_size_right=right,
    )[0]


def unsupported_reason(dtype: torch.dtype, head_size: int, capability: tuple[int, int] | None) -> str | None:
    """Return why attention of this dtype and head size runs document by document; None if one launch computes it all.

    capability: of the card; None: not a CUDA device.
    """
    if capability is None:
        return "variable-length flash attention needs a CUDA device"
    if dtype not in _DTYPES:
        return f"variable-length flash attention computes in fp16 or bf16, not {str(dtype).removeprefix('torch.')}"
    if capability < FLASH_CAPABILITY:
        number = ".".join(map(str, capability))
        return f"variable-length flash attention needs compute capability 8.0, this card has {number}"
    if head_size > FLASH_LARGEST_HEAD or head_size % 8:
        limits = f"head sizes up to {FLASH_LARGEST_HEAD}, multiples of 8"
        return f"variable-length flash attention needs {limits}, not {head_size}"
    return None


def accepts(query_BHTD: Tensor) -> bool:
    """Whether one launch computes the attention of these queries."""
    device = query_BHTD.device
    if device.type != "cuda":
        return False
    return unsupported_reason(product_type(query_BHTD), query_BHTD.shape[-1], _capability(device)) is None


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@lru_cache
def _has_windows_and_groups() -> bool:
    """Whether this torch's varlen_attn knows sliding windows and grouped queries (2.12 and later)."""
    if _varlen_attn is None:
        return False
    parameters: Any = inspect.signature(_varlen_attn).parameters
    return "window_size" in parameters and "enable_gqa" in parameters

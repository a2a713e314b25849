"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-split form of LLaMA.

B batch, H query heads, K key heads, T tokens, D head size.
"""

import torch
from torch import Tensor


def rope(query_BHTD: Tensor, key_BKTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates dimension i and i + D/2 of each head by the angle of its position: x cos + rotate_half(x) sin.

    cos and sin hold each angle twice (first and second half of D), as transformers' rotary embedding makes them;
    positions restart at 0
    with each document. Returns new tensors of the shapes and types of query and key.
    """
    cos_B1TD, sin_B1TD = cos_BTD.unsqueeze(1), sin_BTD.unsqueeze(1)
    return _rotated(query_BHTD, cos_B1TD, sin_B1TD), _rotated(key_BKTD, cos_B1TD, sin_B1TD)


def _rotated(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos + torch.cat((-second, first), dim=-1) * sin

"""Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467)."""

import torch
from torch import Tensor


def rms_norm(hidden_TH: Tensor, weight_H: Tensor, eps: float, *, weight_offset: float = 0.0) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * (weight_offset + weight), for each token over its H values.

    The mean and the division run in fp32 (fp64 for fp64 input) and are rounded to the input's type before the weight
    is applied, as in transformers' LLaMA; Gemma stores weight - 1 (weight_offset 1). Returns hidden_TH's shape and
    type.
    """
    wide = torch.promote_types(hidden_TH.dtype, torch.float32)
    hidden = hidden_TH.to(wide)
    normed = (hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)).to(hidden_TH.dtype)
    weight = weight_H + weight_offset if weight_offset else weight_H
    return (weight * normed).to(hidden_TH.dtype)

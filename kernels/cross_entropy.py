"""Cross-entropy on logits that exist already, for heads that are more than one matrix (an adapter on the head, say).

T tokens, V vocabulary. The formula is that of linear_cross_entropy.py without the product.
"""

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that is not supervised."""


def cross_entropy(
    logits_TV: Tensor,
    labels_T: Tensor,
    *,
    label_smoothing: float = 0.0,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over the tokens whose label is not -100 of the cross-entropy in nats, in fp32 (fp64 for fp64 logits).

    Returns (loss_sum: scalar, differentiable; number of rows whose largest logit is the label's: int64 scalar).
    Callers that care for memory pass supervised rows only. torch's own operation; Triton takes its place on a GPU.
    """
    logits_TV = logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()
    if soft_cap is not None:
        logits_TV = soft_cap * torch.tanh(logits_TV / soft_cap)
    loss_sum = torch.nn.functional.cross_entropy(
        logits_TV, labels_T, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )
    return loss_sum, (logits_TV.detach().argmax(-1) == labels_T).sum()

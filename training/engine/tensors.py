"""A micro-batch as the loss module takes it."""

import numpy as np
import torch

from tunesmith.data.index.loader import MicroBatch, StepBatch
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.training.distributed.ranks import Ranks


def reference_tensors(micro_batch: MicroBatch, device: str) -> dict[str, torch.Tensor]:
    """What a preference is compared with, as a keyword of its loss; nothing for other tasks."""
    if micro_batch.reference is None:
        return {}
    return {"reference_D": torch.from_numpy(micro_batch.reference).to(device)}


def to_tensors(micro_batch: MicroBatch, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Tokens, labels and positions, int64 [T] on the device, and the documents' lengths."""

    def to_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

    return (
        to_device(micro_batch.tokens),
        to_device(micro_batch.labels),
        to_device(micro_batch.positions),
        micro_batch.lengths,
    )


def unrelated_mean(loss: CausalLoss, batch: StepBatch, ranks: Ranks, device: str) -> dict[str, torch.Tensor]:
    """As a keyword of the loss: the mean over the global batch's unrelated pairs of log p(answer) - log p_ref(answer),
    before the step's first gradient, without dropout. Nothing for tasks without such pairs. Every rank calls."""
    if batch.unrelated is None:
        return {}
    total = 0.0
    for micro_batch in batch.unrelated:
        assert micro_batch.reference is not None
        scores = loss.score(*to_tensors(micro_batch, device))
        total -= float((scores.loss_sum + micro_batch.reference).sum())
    (total,) = ranks.sum(total)
    return {"unrelated_mean": torch.tensor(total / batch.global_num_samples, dtype=torch.float32, device=device)}

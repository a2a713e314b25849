"""A micro-batch as the loss module takes it."""

import numpy as np
import torch

from tunesmith.data.index.loader import MicroBatch


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

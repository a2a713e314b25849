"""A micro-batch as the loss module takes it."""

import numpy as np
import torch

from tunesmith.data.loader import MicroBatch


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

"""Micro-batches as tensors, in the form that loss modules take."""

import numpy as np
import torch

from tunesmith.data.index.loader import MicroBatch, StepBatch
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.memory import MemoryWatch, largest


def reference_tensors(micro_batch: MicroBatch, device: str) -> dict[str, torch.Tensor]:
    """Return the reference log-probabilities, fp32 [D], as a keyword argument of the loss; empty for other tasks."""
    if micro_batch.reference is None:
        return {}
    return {"reference_D": torch.from_numpy(micro_batch.reference).to(device)}


def to_tensors(micro_batch: MicroBatch, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Return tokens, labels and positions, int64 [T] on the device, and the lengths of the documents."""

    def to_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

    return (
        to_device(micro_batch.tokens),
        to_device(micro_batch.labels),
        to_device(micro_batch.positions),
        micro_batch.lengths,
    )


def unrelated_mean(
    loss: CausalLoss, batch: StepBatch, ranks: Ranks, device: str, memory: MemoryWatch
) -> dict[str, torch.Tensor]:
    """Return the mean of log p(answer) - log p_ref(answer) over the global batch's unrelated pairs, fp32 scalar, as a
    keyword argument of the loss.

    Computed before the step's first gradient, without dropout. Empty for tasks without such pairs. Every rank calls
    this. Raises MemoryRanOut.
    """
    if batch.unrelated is None:
        return {}
    unrelated = batch.unrelated

    def sum_of_margins() -> float:
        memory.enter("forward")
        total = 0.0
        for micro_batch in unrelated:
            assert micro_batch.reference is not None
            scores = loss.score(*to_tensors(micro_batch, device))
            total -= float((scores.loss_sum + micro_batch.reference).sum())
        return total

    (total,) = ranks.sum(memory.run(sum_of_margins, largest(unrelated or batch.micro_batches)))
    return {"unrelated_mean": torch.tensor(total / batch.global_num_samples, dtype=torch.float32, device=device)}

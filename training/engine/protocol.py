"""What the loop may ask of an engine. The loop does not know which one it drives.

The gradient contract: after `train_batch` the gradient is the sum over all ranks and micro-batches of
d(loss sum) / global number of targets: supervised tokens, or samples. So accumulation, ranks, packing and
partitioning all give the loss of the one large batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from tunesmith.data.index.loader import StepBatch
from tunesmith.modeling.losses.causal import CausalLoss


@dataclass(frozen=True)
class BatchSums:
    """Over all ranks: the summed loss (nats), targets predicted right, supervised tokens, and what the loss is the mean
    of: these tokens, or samples."""

    loss_sum: float
    num_correct: int
    supervised_tokens: int
    num_targets: int


class Engine(Protocol):
    loss_module: CausalLoss
    """The live model inside its loss; evaluation runs it under no_grad."""
    sharded: bool
    """Whether no rank has the whole model: then all ranks run it together, on the same input, or none does."""

    def train_batch(self, batch: StepBatch) -> BatchSums:
        """Forward and backward of every micro-batch of this rank's share."""
        ...

    def optim_step(self, learning_rate: float) -> tuple[float, bool]:
        """Clip and apply the gradient: its norm before clipping, and False where it was not finite and thrown away."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full shape of every trained parameter, by name."""
        ...

    def model_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The trained weights in the order of `shapes`, fp32, whole. Every rank must run through it: it may gather."""
        ...

    def optimizer_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The moments (`training.optimizer.MOMENTS`) as `<moment>.<name>`, moment by moment in the order of `shapes`.

        Zeros before the first update. Every rank must run through it.
        """
        ...

    def load(
        self, model: Mapping[str, torch.Tensor], optimizer: Mapping[str, torch.Tensor] | None, num_updates: int
    ) -> None:
        """Set trained weights and, where given, moments made by `num_updates` updates. KeyError for a missing name."""
        ...

    def close(self) -> None:
        """No more training. What is whole in memory can still be run; a divided model cannot. May be called twice."""
        ...

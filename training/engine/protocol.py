"""The interface between the training loop and an engine.

The gradient contract: after `train_batch` the gradient is the sum over all ranks and micro-batches of
d(loss sum) / global number of targets (supervised tokens, or samples). Accumulation, data parallelism, packing and
sharding therefore all give the loss and gradient of one large batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from tunesmith.data.index.loader import StepBatch
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.training.engine.loss_scale import LossScale
from tunesmith.training.engine.router_loss import RoutingFacts


@dataclass(frozen=True)
class BatchSums:
    """Sums over all ranks: loss (nats), correctly predicted targets, supervised tokens, and the number of targets that
    the loss is averaged over: these tokens, or samples."""

    loss_sum: float
    num_correct: int
    supervised_tokens: int
    num_targets: int
    routing: RoutingFacts | None = None
    """Of a mixture-of-experts model."""


class Engine(Protocol):
    """Interface of a training engine."""

    loss_module: CausalLoss
    """The model in training inside its loss; evaluation runs it under no_grad."""
    sharded: bool
    """Whether the weights are sharded (ZeRO-3): all ranks must then run the model together, on the same input."""
    loss_scale: LossScale | None
    """In fp16: adjusted by every `optim_step`, the same on every rank."""

    def train_batch(self, batch: StepBatch) -> BatchSums:
        """Forward and backward of every micro-batch of this rank's share. Raises MemoryRanOut."""
        ...

    def optim_step(self, learning_rate: float) -> tuple[float, bool]:
        """Clip and apply the gradient. Returns its norm before clipping, and False if it was not finite and dropped.

        Raises MemoryRanOut, before any weight changes.
        """
        ...

    def drop_gradients(self) -> None:
        """Forget the step in progress, after a MemoryRanOut on which the ranks have agreed, and free its memory. It can
        then be repeated."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full shape of every trained parameter by name."""
        ...

    def model_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the whole trained weights, fp32, in the order of `shapes`. Every rank must iterate: it may gather."""
        ...

    def optimizer_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the moments (`training.optim.optimizer.MOMENTS`) as `<moment>.<name>`, moment by moment in the order of
        `shapes`.

        Zeros before the first update. Every rank must iterate.
        """
        ...

    def load(
        self, model: Mapping[str, torch.Tensor], optimizer: Mapping[str, torch.Tensor] | None, num_updates: int
    ) -> None:
        """Load trained weights and, if given, the moments after `num_updates` updates. KeyError for a missing name."""
        ...

    def close(self) -> None:
        """Free gradients, moments and other training resources. A whole model can still be run, a sharded one cannot.
        May be called twice."""
        ...

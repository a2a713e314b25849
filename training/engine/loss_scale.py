"""Dynamic loss scaling for fp16 (Micikevicius et al. 2018, arXiv:1710.03740), with the rules of torch.amp.GradScaler.

The smallest fp16 number is 6e-8: gradients below it become zero. The loss is therefore multiplied by a scale, and the
gradient divided by it before it is clipped and applied. If the gradient is not finite, the scale was too large: the
step is skipped and the scale halved; after GROWTH_INTERVAL steps in a row without that it is doubled. Scales are powers
of two, so that scaling does not round.

The gradient is that of all ranks (summed, or with DeepSpeed an overflow flag that is reduced), so they all decide the
same. One rule for every engine, and the state is part of the checkpoint; DeepSpeed's own scaler for fp16 weights stores
its state in files that this project does not write, and is not used.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from tunesmith.rundir.faults import fault_value

INITIAL_SCALE = 2.0**16
GROWTH_FACTOR = 2.0
BACKOFF_FACTOR = 0.5
GROWTH_INTERVAL = 2000
"""Steps in a row with a finite gradient after which the scale grows. All four as in torch.amp.GradScaler."""


class ScaleState(Protocol):
    """Where a scale is kept between steps and in checkpoints: the state of a run."""

    loss_scale: float | None
    finite_steps: int


@dataclass
class LossScale:
    """scale: factor of the loss. finite_steps: steps in a row with a finite gradient since the scale last changed."""

    scale: float = INITIAL_SCALE
    finite_steps: int = 0

    def unscale_(self, gradients: Iterable[torch.Tensor]) -> None:
        """Divide the gradients by the scale, in place. Exact: a power of two."""
        torch._foreach_mul_(list(gradients), 1.0 / self.scale)  # pyright: ignore[reportPrivateImportUsage]

    def update(self, *, finite: bool) -> None:
        """Adjust the scale after a step. finite: whether the gradient was, on all ranks."""
        self.finite_steps = self.finite_steps + 1 if finite else 0
        if not finite:
            self.scale *= BACKOFF_FACTOR
        elif self.finite_steps == GROWTH_INTERVAL:
            self.scale, self.finite_steps = self.scale * GROWTH_FACTOR, 0

    def explains_skip(self, loss_sum: float) -> bool:
        """Whether a skipped step is only a scale that was too large: the loss itself was finite, and the scale has not
        fallen below 1, where scaling no longer enlarges anything."""
        return math.isfinite(loss_sum) and self.scale >= 1.0

    def store(self, state: ScaleState) -> None:
        """Record the scale in the state that checkpoints contain."""
        state.loss_scale, state.finite_steps = self.scale, self.finite_steps

    def restore(self, state: ScaleState) -> None:
        """Continue with the scale of a checkpoint, if it has one."""
        if state.loss_scale is not None:
            self.scale, self.finite_steps = state.loss_scale, state.finite_steps


def loss_scale_for(precision: str) -> LossScale | None:
    """Return the loss scale of a run, None in precisions with the range of fp32."""
    return LossScale(float(fault_value("loss_scale", str(INITIAL_SCALE)))) if precision == "fp16" else None


def scaled(loss: torch.Tensor, loss_scale: LossScale | None) -> torch.Tensor:
    """Return the loss to be differentiated."""
    return loss if loss_scale is None else loss * loss_scale.scale

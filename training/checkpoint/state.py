"""State of a run in addition to weights and optimizer: a few numbers, stored in every checkpoint."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

WINDOW_STEPS = 10
StepSums = tuple[float, int, int]
"""Of an update: mean loss, correct predictions, targets. In JSON a list."""


@dataclass
class RunState:
    """step: completed optimizer steps; it determines the position in the data. Losses are in nats per token."""

    step: int = 0
    num_updates: int = 0
    """Steps that changed the weights: all except skipped ones."""
    skipped_in_row: int = 0
    first_loss: float | None = None
    first_steps: list[StepSums] = field(default_factory=list)
    """The first WINDOW_STEPS updates, `last_steps` the last ones: training.learning compares them."""
    last_steps: list[StepSums] = field(default_factory=list)
    zero_gradients_in_row: int = 0
    """Updates so far whose gradient was exactly zero although the loss was not."""
    equal_losses_in_row: int = 0
    """Updates so far with exactly the loss of the newest."""
    learning_rates: float | None = 0.0
    """Sum over all updates; None if an earlier version has not recorded it."""
    untrained: dict[str, Any] | None = None
    """Scores of the validation rows before the first step, as in the `evaluation` event."""
    best_loss: float | None = None
    """Lowest validation loss so far; `best_step` is its step."""
    best_step: int | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    loss_scale: float | None = None
    """Scale of the loss in fp16 (training.engine.loss_scale); None in other precisions."""
    finite_steps: int = 0
    """Steps in a row with a finite gradient since the scale last changed."""
    kernels_off: dict[str, str] = field(default_factory=dict)
    """Operations whose kernel ran out of resources during training, with the reason: a resumed run uses their
    references from the start."""
    num_tokens: int = 0
    supervised_tokens: int = 0
    train_seconds: float = 0.0

    def note_update(self, sums: StepSums, grad_norm: float, learning_rate: float, *, solved: bool) -> None:
        """Record an update. solved: the loss is so low that a zero gradient is no fault."""
        loss = sums[0]
        self.first_loss = loss if self.first_loss is None else self.first_loss
        if len(self.first_steps) == self.num_updates - 1 < WINDOW_STEPS:
            self.first_steps.append(sums)
        same = bool(self.last_steps) and self.last_steps[-1][0] == loss
        self.equal_losses_in_row = self.equal_losses_in_row + 1 if same else 1
        self.last_steps = [*self.last_steps, sums][-WINDOW_STEPS:]
        self.zero_gradients_in_row = self.zero_gradients_in_row + 1 if grad_norm == 0.0 and not solved else 0
        if self.learning_rates is not None:
            self.learning_rates += learning_rate

    def note_validation(self, loss: float, min_delta: float) -> bool:
        """Record a validation loss of the current step; True if it is the best so far."""
        if math.isnan(loss) or (self.best_loss is not None and loss >= self.best_loss - min_delta):
            self.evaluations_without_gain += 1
            return False
        self.best_loss, self.best_step, self.evaluations_without_gain = loss, self.step, 0
        return True

    def to_json(self) -> dict[str, Any]:
        """Return the state as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "RunState":
        """Read a state; fields that are missing in `raw` get their defaults, unknown keys are ignored."""
        state = cls(**{field.name: raw[field.name] for field in fields(cls) if field.name in raw})
        state.first_steps = [_sums(step) for step in state.first_steps]
        state.last_steps = [_sums(step) for step in state.last_steps]
        if state.num_updates and "learning_rates" not in raw:
            state.learning_rates = None
        return state


def _sums(step: Sequence[Any]) -> StepSums:
    loss, num_correct, num_targets = step
    return float(loss), int(num_correct), int(num_targets)

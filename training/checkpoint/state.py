"""State of a run in addition to weights and optimizer: a few numbers, stored in every checkpoint."""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class RunState:
    """step: completed optimizer steps; it determines the position in the data. Losses are in nats per token."""

    step: int = 0
    num_updates: int = 0
    """Steps that changed the weights: all except skipped ones."""
    skipped_in_row: int = 0
    first_loss: float | None = None
    lowest_loss: float | None = None
    highest_loss: float | None = None
    best_loss: float | None = None
    """Lowest validation loss so far; `best_step` is its step."""
    best_step: int | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    num_tokens: int = 0
    supervised_tokens: int = 0
    train_seconds: float = 0.0

    def note_loss(self, loss: float) -> None:
        """Update the first, lowest and highest training loss: a loss that never changes is a fault."""
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.lowest_loss = loss if self.lowest_loss is None else min(self.lowest_loss, loss)
        self.highest_loss = loss if self.highest_loss is None else max(self.highest_loss, loss)

    def note_validation(self, loss: float, min_delta: float) -> bool:
        """Record a validation loss of the current step; True if it is the best so far."""
        if self.best_loss is not None and loss >= self.best_loss - min_delta:
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
        return cls(**{field.name: raw[field.name] for field in fields(cls) if field.name in raw})

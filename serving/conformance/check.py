"""Definition of a check, and its result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.outcome import Broken

Outcome = Literal["holds", "broken", "not supported", "left out"]


@dataclass(frozen=True)
class Check:
    """line: the requirement, in plain English. run: raises an exception if the server does not meet it.

    trains: needs a trained job, or trains one itself; skipped with `--quick`.
    """

    name: str
    line: str
    run: Callable[[Bench], None]
    trains: bool = False


@dataclass(frozen=True)
class Finding:
    """words: what was observed; None if the requirement is met."""

    check: str
    line: str
    outcome: Outcome
    words: str | None = None


def require(condition: object, message: str) -> None:
    """Raise Broken if the condition is false."""
    if not condition:
        raise Broken(message)


def require_equal(actual: object, expected: object, what: str) -> None:
    if actual != expected:
        raise Broken(f"{what} is {actual!r}, expected {expected!r}")

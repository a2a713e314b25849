"""What a check of the contract is, and what it found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.outcome import Broken

Outcome = Literal["holds", "broken", "not supported", "left out"]


@dataclass(frozen=True)
class Check:
    """line: of the contract, in plain words. run: returns where it holds, raises where it does not.

    trains: needs a job that was trained to its end, or trains one itself; `--quick` leaves it out.
    """

    name: str
    line: str
    run: Callable[[Bench], None]
    trains: bool = False


@dataclass(frozen=True)
class Finding:
    """words: what was seen where the line does not hold; None where it does."""

    check: str
    line: str
    outcome: Outcome
    words: str | None = None


def require(holds: object, words: str) -> None:
    """Raises Broken with the words where it does not hold."""
    if not holds:
        raise Broken(words)


def require_equal(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise Broken(f"{what} is {found!r}, not {expected!r}")

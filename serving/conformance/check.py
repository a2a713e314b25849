"""What a check is, and the three ways in which it ends other than well."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tunesmith.serving.conformance.bench import Bench

Outcome = Literal["holds", "broken", "not supported", "left out"]


@dataclass(frozen=True)
class Check:
    """line: of the contract, in plain words. run: returns where it holds, raises where it does not.

    trains: needs a job that was trained to its end, or trains one itself; `--quick` leaves it out.
    """

    name: str
    line: str
    run: "Callable[[Bench], None]"
    trains: bool = False


@dataclass(frozen=True)
class Finding:
    """words: what was seen where the line does not hold; None where it does."""

    check: str
    line: str
    outcome: Outcome
    words: str | None = None


class Broken(Exception):
    """The server does something else than the contract says."""


class NotSupported(Exception):
    """The server says in its own words that it does not do this."""


class LeftOut(Exception):
    """The check cannot be made here, by nobody's fault."""


def require(holds: object, words: str) -> None:
    """Raises Broken with the words where it does not hold."""
    if not holds:
        raise Broken(words)


def require_equal(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise Broken(f"{what} is {found!r}, not {expected!r}")

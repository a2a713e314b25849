"""One thing that a run proves of itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Proof:
    """name: what is claimed. passed: None where it cannot be said, or not yet. evidence: the numbers behind it."""

    name: str
    passed: bool | None
    evidence: str

"""Result of one proof."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Proof:
    """name: the claim. passed: None if it cannot be verified, or not yet. evidence: the numbers that support it."""

    name: str
    passed: bool | None
    evidence: str

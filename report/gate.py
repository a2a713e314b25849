"""Result of an export gate: the largest logit difference from the trained model, and its limit."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tunesmith.report.wording import finite, significant


class GateMeasure(NamedTuple):
    """value, limit: logit differences, or fractions of the largest logit if `relative`; None if not recorded."""

    value: float | None
    limit: float | None
    relative: bool

    @property
    def holds(self) -> bool:
        return self.value is not None and self.limit is not None and self.value <= self.limit

    def __str__(self) -> str:
        """`largest logit difference 1.2e-6 (limit 0.001)`, or `... 1.3% of the largest logit (limit 10%)`."""
        if self.value is None:
            return "no logit difference recorded"
        show = _percent if self.relative else significant
        scale = " of the largest logit" if self.relative else ""
        limit = "" if self.limit is None else f" (limit {show(self.limit)})"
        return f"largest logit difference {show(self.value)}{scale}{limit}"


def gate_measure(gate: Mapping[str, Any] | None) -> GateMeasure:
    """Return measure and limit of an export event's `gate`.

    A relative gate (bf16) of an earlier version recorded no fraction: its limit is converted to a logit difference.
    """
    gate = gate or {}
    difference, tolerance = finite(gate.get("max_logit_difference")), finite(gate.get("tolerance"))
    if not gate.get("relative"):
        return GateMeasure(difference, tolerance, relative=False)
    if "max_relative_difference" in gate:
        return GateMeasure(finite(gate["max_relative_difference"]), tolerance, relative=True)
    largest = finite(gate.get("largest_logit")) or 0.0
    return GateMeasure(difference, None if tolerance is None else tolerance * largest, relative=False)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g}%"

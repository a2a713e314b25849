"""One number over examples with its uncertainty, and the difference of two such numbers over the same examples.

Whatever a metric is (a mean, a ratio of sums, an F1, an area), its error comes from what each of the n examples did to
it: their influence u_i, in the metric's own unit, with

    SE^2 = sum((u_i - mean u)^2) / (n (n - 1))

For a ratio of sums R = sum(y) / sum(x), u_i = n (y_i - R x_i) / sum(x) (Cochran, Sampling Techniques, 3rd ed. 1977,
chapter 6); for any other metric u_i = (n - 1) (R - R_without_i), the jackknife's (Efron and Stein, The Annals of
Statistics 9, 1981). Two models on the same examples are compared example by example: the influences are subtracted, and
the errors that both share cancel (Miller 2024, arXiv:2411.00640). Intervals use Student's t with n - 1 degrees.

Sums are math.fsum, which rounds once: the order of the examples changes no bit. Nothing is drawn at random.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.intervals import student_95


@dataclass(frozen=True)
class Measured:
    """value: NaN where the metric is not defined on these examples. influence: float64 [n], see above."""

    value: float
    influence: np.ndarray

    @property
    def error(self) -> float | None:
        """The standard error; None where a single example gives none, NaN where the value is not finite."""
        return _error(self.value, self.influence)

    def as_json(self) -> dict[str, float | None]:
        """{"value", "error"}, null for what is not defined."""
        return {"value": _finite(self.value), "error": _finite(self.error)}


@dataclass(frozen=True)
class Difference:
    """after - before of one metric on the same examples. low, high: 95% confidence interval; None if there is only one
    example or the metric is undefined."""

    value: float
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


def ratio(y: np.ndarray, x: np.ndarray) -> Measured:
    """sum(y) / sum(x) over examples, both [n]; NaN where sum(x) is zero."""
    count, total = len(x), exact_sum(x)
    if total == 0.0:
        return Measured(math.nan, np.zeros(count))
    value = exact_sum(y) / total
    if not math.isfinite(value):
        return Measured(value, np.full(count, math.nan))
    return Measured(value, count * (y - value * x) / total)


def mean(y: np.ndarray) -> Measured:
    """The mean over examples [n]; NaN where there are none."""
    return ratio(np.asarray(y, np.float64), np.ones(len(y)))


def jackknifed(value: float, left_out: np.ndarray) -> Measured:
    """left_out: float64 [n], the metric without each example in turn."""
    return Measured(value, (len(left_out) - 1) * (value - np.asarray(left_out, np.float64)))


def difference(before: Measured, after: Measured) -> Difference:
    """Raises ValueError where the two are not over equally many examples."""
    if len(before.influence) != len(after.influence):
        raise ValueError(f"{len(before.influence)} and {len(after.influence)} examples cannot be paired")
    value = after.value - before.value
    error = _error(value, after.influence - before.influence)
    if error is None or not math.isfinite(error):
        return Difference(value, None, None)
    margin = student_95(len(after.influence) - 1) * error
    return Difference(value, value - margin, value + margin)


def exact_sum(values: np.ndarray) -> float:
    """The sum, rounded once; NaN where infinities of both signs meet or a number is none."""
    try:
        return math.fsum(np.asarray(values).tolist())
    except (OverflowError, ValueError):
        return math.nan


def _error(value: float, influence: np.ndarray) -> float | None:
    count = len(influence)
    if count < 2:
        return None
    if not math.isfinite(value):
        return math.nan
    deviations = influence - exact_sum(influence) / count
    return math.sqrt(exact_sum(deviations * deviations) / (count * (count - 1)))


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)

"""A metric over examples with its standard error, and the paired difference of two metrics over the same examples.

For every metric (mean, ratio of sums, F1, area), the error is computed from the influence u_i of each of the n
examples, in the unit of the metric:

    SE^2 = sum((u_i - mean u)^2) / (n (n - 1))

For a ratio of sums R = sum(y) / sum(x), u_i = n (y_i - R x_i) / sum(x) (Cochran, Sampling Techniques, 3rd ed. 1977,
chapter 6); for any other metric u_i = (n - 1) (R - R_without_i), the jackknife (Efron and Stein, The Annals of
Statistics 9, 1981). Two models are compared example by example: the influences are subtracted, so that shared errors
cancel (Miller 2024, arXiv:2411.00640). Intervals use Student's t with n - 1 degrees of freedom.

Sums use math.fsum, which rounds once, so the order of the examples does not change the result. Nothing is random.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.intervals import student_95


@dataclass(frozen=True)
class Measured:
    """value: NaN if the metric is undefined on these examples. influence: float64 [n], see above."""

    value: float
    influence: np.ndarray

    @property
    def error(self) -> float | None:
        """The standard error; None for a single example, NaN if the value is not finite."""
        return _error(self.value, self.influence)

    def as_json(self) -> dict[str, float | None]:
        """Return {"value", "error"}, null if undefined."""
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
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


def ratio(y: np.ndarray, x: np.ndarray) -> Measured:
    """Return sum(y) / sum(x) over examples, both [n]; NaN if sum(x) is zero."""
    count, total = len(x), exact_sum(x)
    if total == 0.0:
        return Measured(math.nan, np.zeros(count))
    value = exact_sum(y) / total
    if not math.isfinite(value):
        return Measured(value, np.full(count, math.nan))
    return Measured(value, count * (y - value * x) / total)


def mean(y: np.ndarray) -> Measured:
    """Return the mean over examples [n]; NaN if there are none."""
    return ratio(np.asarray(y, np.float64), np.ones(len(y)))


def jackknifed(value: float, left_out: np.ndarray) -> Measured:
    """Return a metric with jackknife influences. left_out: float64 [n], the metric without each example in turn."""
    return Measured(value, (len(left_out) - 1) * (value - np.asarray(left_out, np.float64)))


def difference(before: Measured, after: Measured) -> Difference:
    """Return the paired difference. Raises ValueError if the numbers of examples differ."""
    if len(before.influence) != len(after.influence):
        raise ValueError(f"{len(before.influence)} and {len(after.influence)} examples cannot be paired")
    value = after.value - before.value
    error = _error(value, after.influence - before.influence)
    if error is None or not math.isfinite(error):
        return Difference(value, None, None)
    margin = student_95(len(after.influence) - 1) * error
    return Difference(value, value - margin, value + margin)


def exact_sum(values: np.ndarray) -> float:
    """Return the sum, rounded once; NaN if a value is NaN or infinities of both signs occur."""
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

"""From sums by example to metrics with their uncertainty, and to the difference between two models.

Every metric here is a ratio of sums over examples, R = sum(y) / sum(x): loss is summed nats over supervised tokens,
accuracy is right tokens over supervised tokens. Examples are independent draws, the tokens inside one are not, so the
error is that of the ratio estimator over examples, not that of a mean over tokens:

    Var(R) = n / (n - 1) * sum((y_i - R x_i)^2) / sum(x)^2      (Cochran, Sampling Techniques, 3rd ed. 1977, chapter 6)

Two models that scored the same examples are compared example by example (paired): the errors that they share cancel
(Miller 2024, Adding Error Bars to Evals, arXiv:2411.00640). The interval is the delta method's, with Student's t.
Nothing here is drawn at random, so the same scores give the same interval.
"""

import math
from dataclasses import dataclass

import numpy as np

from tunesmith.errors import RunFault
from tunesmith.evaluation.results import ExampleScores


@dataclass(frozen=True)
class LossMetrics:
    """loss in nats a token; the errors are standard errors, None where one example alone gives none."""

    loss: float
    loss_error: float | None
    perplexity: float
    perplexity_error: float | None
    token_accuracy: float
    token_accuracy_error: float | None
    num_examples: int
    num_tokens: int


@dataclass(frozen=True)
class Difference:
    """after - before of one metric, same examples. low, high: 95 % interval, None where one example gives none."""

    value: float
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


@dataclass(frozen=True)
class Comparison:
    """Two models over the same examples: what changed from the first to the second."""

    loss: Difference
    token_accuracy: Difference
    num_examples: int


def loss_of(scores: ExampleScores) -> LossMetrics:
    """Loss, perplexity and token accuracy over all supervised tokens, each with its standard error.

    Raises RunFault where no token is supervised: there is nothing to measure.
    """
    used = scores.num_tokens > 0
    if not used.any():
        raise RunFault(
            "no token of the evaluated rows is supervised: there is nothing to measure",
            where=f"{len(scores)} rows",
            remedy="look at the rows with `tunesmith data show`; for plain text set task: text",
        )
    tokens = scores.num_tokens[used]
    loss, loss_error, _ = _ratio(scores.loss_sum[used], tokens)
    accuracy, accuracy_error, _ = _ratio(scores.num_correct[used], tokens)
    perplexity = math.exp(loss) if loss < 700.0 else math.inf if loss == loss else math.nan
    return LossMetrics(
        loss=loss,
        loss_error=loss_error,
        perplexity=perplexity,
        perplexity_error=None if loss_error is None else perplexity * loss_error,  # d exp(R) = exp(R) dR
        token_accuracy=accuracy,
        token_accuracy_error=accuracy_error,
        num_examples=int(used.sum()),
        num_tokens=int(tokens.sum()),
    )


def compare(before: ExampleScores, after: ExampleScores) -> Comparison:
    """The paired difference after - before. Raises RunFault where the two did not score the same tokens."""
    if not (np.array_equal(before.row, after.row) and np.array_equal(before.num_tokens, after.num_tokens)):
        raise RunFault(
            "the two evaluations are not of the same rows and tokens: they cannot be compared row by row",
            where=f"{len(before)} and {len(after)} rows",
            remedy="evaluate both models on the same file, with the same tokenizer, template and max_seq_len",
        )
    used = before.num_tokens > 0
    tokens = before.num_tokens[used]
    return Comparison(
        loss=_difference(after.loss_sum[used] - before.loss_sum[used], tokens),
        token_accuracy=_difference(after.num_correct[used] - before.num_correct[used], tokens),
        num_examples=int(used.sum()),
    )


def _difference(change: np.ndarray, tokens: np.ndarray) -> Difference:
    """A difference of two ratios with the same denominators is itself a ratio, of the examples' changes."""
    value, error, degrees = _ratio(change, tokens)
    if error is None:
        return Difference(value, None, None)
    margin = student_95(degrees) * error
    return Difference(value, value - margin, value + margin)


def _ratio(y: np.ndarray, x: np.ndarray) -> tuple[float, float | None, int]:
    """sum(y) / sum(x), its standard error and the degrees of freedom. fsum: the order of examples changes nothing."""
    count, total = len(x), math.fsum(x.tolist())
    if total == 0.0:
        return math.nan, None, 0
    try:
        ratio = math.fsum(y.tolist()) / total
    except (OverflowError, ValueError):  # infinities of both signs
        ratio = math.nan
    if count < 2:
        return ratio, None, 0
    if not math.isfinite(ratio):
        return ratio, math.nan, count - 1
    residuals = y - ratio * x
    variance = count / (count - 1) * math.fsum((residuals * residuals).tolist()) / total**2
    return ratio, math.sqrt(variance), count - 1


def student_95(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: exact for up to 3 degrees of freedom, within 1e-3 above.

    Expansion about the normal quantile: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    exact = {1: 12.706204736, 2: 4.302652730, 3: 3.182446305}
    if degrees in exact:
        return exact[degrees]
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))

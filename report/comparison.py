"""Paired difference between two evaluations, with its 95% confidence interval, from evaluations/*.jsonl.

Loss and accuracy are ratios of sums over examples, R = sum(y) / sum(x), where x is the number of supervised tokens. The
difference of two such ratios over the same examples is the ratio D = sum(d) / sum(x) of the per-example changes d, with

    Var(D) = n / (n - 1) * sum((d_i - D x_i)^2) / sum(x)^2      (Cochran, Sampling Techniques, 3rd ed. 1977, chapter 6)

and the interval is D plus or minus Student's t times the standard error, as in evaluation/metrics/measure.py.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from tunesmith.intervals import student_95
from tunesmith.report.record import Record
from tunesmith.report.wording import number_of
from tunesmith.rundir.json_lines import read_lines


@dataclass(frozen=True)
class Difference:
    """after - before. low, high: 95% confidence interval, None if there is only one example."""

    value: float
    low: float | None
    high: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True)
class Example:
    """Mean loss of one row over its supervised tokens before and after training, in nats."""

    row: int
    loss_before: float
    loss_after: float
    num_tokens: int


@dataclass(frozen=True)
class Comparison:
    step_before: int
    step_after: int
    loss: Difference
    token_accuracy: Difference
    examples: list[Example]

    @property
    def num_better(self) -> int:
        return sum(example.loss_after < example.loss_before for example in self.examples)


@dataclass(frozen=True)
class _Score:
    loss: float
    num_tokens: int
    num_correct: int


def compare(record: Record) -> Comparison | None:
    """Compare the first and the last evaluation, paired by row.

    None if one is missing or they scored different tokens.
    """
    before, after = record.evaluation("before"), record.evaluated_last
    if before is None or after is None or before.step == after.step:
        return None
    files = record.run.evaluation(before.step), record.run.evaluation(after.step)
    return compare_files(*files, before.step, after.step)


def compare_files(first_file: Path, second_file: Path, step_before: int, step_after: int) -> Comparison | None:
    """Compare two score files, paired by row; None if one is missing or they scored different tokens."""
    first, second = _read_scores(first_file), _read_scores(second_file)
    if not first or {row: s.num_tokens for row, s in first.items()} != {row: s.num_tokens for row, s in second.items()}:
        return None
    pairs = [(first[row], second[row]) for row in first]
    tokens = [b.num_tokens for b, _ in pairs]
    examples = [Example(row, first[row].loss, second[row].loss, first[row].num_tokens) for row in sorted(first)]
    return Comparison(
        step_before=step_before,
        step_after=step_after,
        loss=difference([(a.loss - b.loss) * b.num_tokens for b, a in pairs], tokens),
        token_accuracy=difference([a.num_correct - b.num_correct for b, a in pairs], tokens),
        examples=examples,
    )


def difference(changes: list[float] | list[int], tokens: list[int]) -> Difference:
    """Return sum(changes) / sum(tokens) and its interval; changes and tokens are per-example sums."""
    num, total = len(tokens), math.fsum(tokens)
    value = math.fsum(changes) / total
    if num < 2 or not math.isfinite(value):
        return Difference(value, None, None)
    squares = math.fsum((d - value * x) ** 2 for d, x in zip(changes, tokens, strict=True))
    margin = student_95(num - 1) * math.sqrt(num / (num - 1) * squares) / total
    return Difference(value, value - margin, value + margin)


def _read_scores(path: Path) -> dict[int, _Score]:
    """Return the scores by row, without rows that have no supervised token."""
    scores = {}
    for raw in read_lines(path):
        numbers = [raw.get(key) for key in ("id", "num_tokens", "num_correct")]
        loss = number_of(raw.get("loss"))
        if loss is not None and all(isinstance(number, int) for number in numbers) and raw["num_tokens"] > 0:
            scores[raw["id"]] = _Score(loss, raw["num_tokens"], raw["num_correct"])
    return scores

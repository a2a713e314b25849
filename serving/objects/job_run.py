"""The state of a job's run: an object of this server's own, beyond the hosted API."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


class RunStatus(TypedDict):
    """started, heartbeat: seconds since the epoch. eta_s: estimated seconds to the end, where known."""

    phase: str
    step: int
    total_steps: int
    attempt: int
    eta_s: float | None
    started: float
    heartbeat: float


class RejectedRow(TypedDict):
    """line: its number in the source, as text."""

    source: str
    line: str
    reason: str
    remedy: str


class RunReceipts(TypedDict):
    """fates: number of rows by outcome. splits: the numbers of each, by its name. near_duplicates, deidentified: what
    the data check counted, by its name for it."""

    rows: int | None
    fates: Mapping[str, int] | None
    splits: Mapping[str, Mapping[str, Any]]
    near_duplicates: Mapping[str, Any]
    deidentified: Mapping[str, Any] | None
    rejects: Sequence[RejectedRow]


class MeasuredDifference(TypedDict):
    """after - before. low, high: 95% confidence interval, None where a single example gives none."""

    value: float | None
    low: float | None
    high: float | None


class EvaluationDifference(TypedDict):
    loss: MeasuredDifference
    token_accuracy: MeasuredDifference
    num_better: int
    num_examples: int


class RunEvaluation(TypedDict):
    """before, after: what was measured before and after training, by its name."""

    before: Mapping[str, float]
    after: Mapping[str, float] | None
    difference: EvaluationDifference | None


class JobRun(TypedDict):
    """status, receipts, evaluation: None until the run has written them."""

    object: Literal["fine_tuning.job.run"]
    id: str
    status: RunStatus | None
    receipts: RunReceipts | None
    evaluation: RunEvaluation | None

"""Run of a fine-tuning job: an object of this server that the hosted API does not have."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


class RunStatus(TypedDict):
    """started, heartbeat: seconds since the epoch. eta_s: estimated seconds remaining, if known."""

    phase: str
    step: int
    total_steps: int
    attempt: int
    eta_s: float | None
    started: float
    heartbeat: float


class RejectedRow(TypedDict):
    """line: line number in the source, as text."""

    source: str
    line: str
    reason: str
    remedy: str


class RunReceipts(TypedDict):
    """fates: number of rows by outcome. splits: counts by split name. near_duplicates, deidentified: counts by kind.
    special_token_rows: rows with special tokens in their content."""

    rows: int | None
    fates: Mapping[str, int] | None
    splits: Mapping[str, Mapping[str, Any]]
    near_duplicates: Mapping[str, Any]
    deidentified: Mapping[str, Any] | None
    special_token_rows: int
    rejects: Sequence[RejectedRow]


class MeasuredDifference(TypedDict):
    """after - before. low, high: 95% confidence interval; None for a single example."""

    value: float | None
    low: float | None
    high: float | None


class EvaluationDifference(TypedDict):
    loss: MeasuredDifference
    token_accuracy: MeasuredDifference
    num_better: int
    num_examples: int


class RunEvaluation(TypedDict):
    """before, after: metrics before and after training, by name."""

    before: Mapping[str, float]
    after: Mapping[str, float] | None
    difference: EvaluationDifference | None


class JobRun(TypedDict):
    """status, receipts, evaluation: None until written by the run."""

    object: Literal["fine_tuning.job.run"]
    id: str
    status: RunStatus | None
    receipts: RunReceipts | None
    evaluation: RunEvaluation | None

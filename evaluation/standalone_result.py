"""What a standalone evaluation was given, and what comes of it."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.evaluation.candidates import Candidate, CandidateResult, Progress, candidate
from tunesmith.evaluation.metrics.language import Comparison, LossMetrics, compare, loss_of
from tunesmith.evaluation.subject import Subject
from tunesmith.inference.types import Sampling

ANSWERS = Sampling(max_new_tokens=256)


@dataclass(frozen=True)
class Asked:
    """What is measured, beside the loss. metrics: names, see text_metrics. sampling: of generated answers. schema: a
    file with a JSON schema for the metric json. few_shot: training rows of the run in the baseline's prompt."""

    metrics: tuple[str, ...] = ("language",)
    sampling: Sampling = ANSWERS
    schema: Path | None = None
    few_shot: int = 0


@dataclass(frozen=True)
class EvaluationRequest:
    """What `evaluate` was given, looked up. other: the baseline's subject. index: the prepared rows. names: of metrics
    over answers. started: time.perf_counter."""

    model: str
    subject: Subject
    baseline: str | None
    other: Subject | None
    files: Sequence[Path]
    task: str
    index: Path
    asked: Asked
    names: tuple[str, ...]
    workers: int
    batch_size: int | None
    out: Path | None
    progress: Progress | None
    started: float


@dataclass(frozen=True)
class StandaloneEvaluation:
    """model, baseline: what was evaluated, for people. comparison: from the baseline to the model, row by row.
    num_rows: rows of the data; metrics.num_examples of them have a target. candidates: model, baseline, baseline with
    examples in its prompt. signatures: how sacreBLEU computed. seconds: of scoring, loading included."""

    model: str
    data: list[str]
    task: str
    num_rows: int
    metrics: LossMetrics
    baseline: str | None
    baseline_metrics: LossMetrics | None
    comparison: Comparison | None
    seconds: float
    candidates: dict[str, Candidate]
    signatures: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """For JSON, which has no numbers that are not finite: they are null."""
        return json.loads(json.dumps(asdict(self)), parse_constant=lambda name: None)


def result_of(request: EvaluationRequest, found: dict[str, CandidateResult], shots: int) -> StandaloneEvaluation:
    subject, other = request.subject, request.other
    model, reference = found["model"], found.get("baseline")
    candidates = {"model": candidate(subject.name, model, None)}
    for role, one in found.items():
        if role != "model" and other is not None:
            candidates[role] = candidate(other.name, one, model, shots if role == "few_shot" else 0)
    return StandaloneEvaluation(
        model=subject.name,
        data=[str(path) for path in request.files],
        task=request.task,
        num_rows=len(model.scores),
        metrics=loss_of(model.scores),
        baseline=other.name if other is not None else None,
        baseline_metrics=loss_of(reference.scores) if reference is not None else None,
        comparison=compare(reference.scores, model.scores) if reference is not None else None,
        seconds=time.perf_counter() - request.started,
        candidates=candidates,
        signatures=model.signatures,
    )

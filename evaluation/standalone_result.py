"""Options, request and result of a standalone evaluation."""

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
class EvaluationOptions:
    """What to measure in addition to the loss.

    metrics: names, see text_metrics. sampling: for generated answers. schema: file with a JSON schema for the metric
    json. few_shot: number of training rows in the prompt of the few-shot baseline; 0: none.
    """

    metrics: tuple[str, ...] = ("language",)
    sampling: Sampling = ANSWERS
    schema: Path | None = None
    few_shot: int = 0


@dataclass(frozen=True)
class EvaluationRequest:
    """Resolved arguments of `evaluate`.

    baseline_subject: the resolved baseline. index: the prepared rows. names: metrics of generated answers. started:
    time.perf_counter().
    """

    model: str
    subject: Subject
    baseline: str | None
    baseline_subject: Subject | None
    files: Sequence[Path]
    task: str
    index: Path
    options: EvaluationOptions
    names: tuple[str, ...]
    workers: int
    batch_size: int | None
    out: Path | None
    progress: Progress | None
    started: float


@dataclass(frozen=True)
class StandaloneEvaluation:
    """Result of an evaluation.

    model, baseline: names for display. comparison: model minus baseline, row by row. num_rows: rows of the data, of
    which metrics.num_examples have a target. candidates: "model", "baseline", "few_shot". signatures: of sacreBLEU
    metrics. seconds: duration, including loading.
    """

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
        """Return a JSON object, with null for non-finite numbers."""
        return json.loads(json.dumps(asdict(self)), parse_constant=lambda name: None)


def result_of(request: EvaluationRequest, results: dict[str, CandidateResult], shots: int) -> StandaloneEvaluation:
    subject, baseline = request.subject, request.baseline_subject
    model, reference = results["model"], results.get("baseline")
    candidates = {"model": candidate(subject.name, model, None)}
    for role, result in results.items():
        if role != "model" and baseline is not None:
            candidates[role] = candidate(baseline.name, result, model, shots if role == "few_shot" else 0)
    return StandaloneEvaluation(
        model=subject.name,
        data=[str(path) for path in request.files],
        task=request.task,
        num_rows=len(model.scores),
        metrics=loss_of(model.scores),
        baseline=baseline.name if baseline is not None else None,
        baseline_metrics=loss_of(reference.scores) if reference is not None else None,
        comparison=compare(reference.scores, model.scores) if reference is not None else None,
        seconds=time.perf_counter() - request.started,
        candidates=candidates,
        signatures=model.signatures,
    )

"""The models that an evaluation sets side by side: what each was asked, what came back, and the numbers over it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.evaluation.job import Answered, EvaluationJob, JobPart, answers_of_part, scores_of_part
from tunesmith.evaluation.metrics.language import LossMetrics, language, loss_of, require_same_rows
from tunesmith.evaluation.metrics.measure import Difference, Measured, difference
from tunesmith.evaluation.processes import default_max_tokens, run_job
from tunesmith.evaluation.results import ExampleScores, score_lines
from tunesmith.evaluation.subject import Subject
from tunesmith.evaluation.text_metrics import text_metrics
from tunesmith.inference.types import Sampling

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Candidate:
    """One model on the rows. metrics: by name {"value", "error"}, null for what is not defined. loss: the same numbers
    of language modelling, for code. shots: training rows in its prompt. model_minus_this: the evaluated model's
    numbers less this one's, with their intervals, row by row; None for the model itself."""

    name: str
    shots: int
    loss: LossMetrics
    metrics: dict[str, dict[str, float | None]]
    model_minus_this: dict[str, Difference] | None = None


@dataclass(frozen=True)
class CandidateResult:
    """Per-example results of one candidate, and the numbers over them."""

    scores: ExampleScores
    answered: list[Answered]
    measured: dict[str, Measured]
    signatures: dict[str, str]


def candidate(name: str, found: CandidateResult, model: CandidateResult | None, shots: int = 0) -> Candidate:
    """model: the evaluated model's, to compare with. Raises RunFault where the two did not score the same tokens."""
    moved = None
    if model is not None:
        require_same_rows(found.scores, model.scores)
        shared = [name for name in found.measured if name in model.measured]
        moved = {name: difference(found.measured[name], model.measured[name]) for name in shared}
    metrics = {name: measured.as_json() for name, measured in found.measured.items()}
    return Candidate(name, shots, loss_of(found.scores), metrics, moved)


class Runner:
    """Runs a model's requests as a job and computes the numbers over what comes back."""

    def __init__(
        self,
        place: Path,
        names: tuple[str, ...],
        schema: Path | None,
        workers: int,
        batch_size: int | None,
        progress: Progress | None,
    ):
        self.place, self.names, self.schema = place, names, schema
        self.workers, self.batch_size, self.progress = workers, batch_size, progress

    def __call__(
        self, target: str, subject: Subject, parts: dict[str, tuple[Path, Sampling | None]], what: str
    ) -> dict[str, CandidateResult]:
        path = Path(target).expanduser()
        job = EvaluationJob(
            model=str(path.resolve()) if path.exists() else target,
            fingerprint=subject.fingerprint(),
            parts=[
                part
                for name, (index, sampling) in parts.items()
                for part in (
                    JobPart(f"{name} rows", "score", str(index.resolve())),
                    *(
                        [JobPart(f"{name} answers", "generate", str(index.resolve()), None, sampling)]
                        if sampling
                        else []
                    ),
                )
            ],
            max_tokens=default_max_tokens(),
            max_sequences=self.batch_size,
        )

        def say(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(what, done, total)

        directory = self.place / job.name
        run_job(job, directory, workers=self.workers, progress=say)
        return {name: self._found(directory, name, sampling is not None) for name, (_, sampling) in parts.items()}

    def _found(self, directory: Path, name: str, answers: bool) -> CandidateResult:
        scores = scores_of_part(directory, f"{name} rows")
        loss_of(scores)  # refuses rows without a target
        answered = answers_of_part(directory, f"{name} answers") if answers else []
        text, signatures = text_metrics(self.names, answered, self.schema) if answered else ({}, {})
        return CandidateResult(scores, answered, language(scores) | text, signatures)


def lines_of(found: CandidateResult) -> str:
    """One JSON object a row: its scores, and what was generated."""
    answers: dict[int, Any] = {one.row: asdict(one) for one in found.answered}
    lines = []
    for line in score_lines(found.scores):
        if (given := answers.get(line["id"])) is not None:
            kept = ("output", "reference", "stopped")
            line |= {key: given[key] for key in kept} | {"num_generated_tokens": given["num_tokens"]}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)

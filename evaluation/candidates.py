"""Models compared in an evaluation: their requests, per-row results and metrics."""

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
    """One model evaluated on the rows.

    metrics: {"value", "error"} by name, null if undefined. loss: the language modeling metrics, for code. shots: number
    of training rows in its prompt. model_minus_this: metrics of the evaluated model minus those of this one, with
    paired intervals; None for the evaluated model itself.
    """

    name: str
    shots: int
    loss: LossMetrics
    metrics: dict[str, dict[str, float | None]]
    model_minus_this: dict[str, Difference] | None = None


@dataclass(frozen=True)
class CandidateResult:
    """Per-row results of one candidate, and the metrics over them."""

    scores: ExampleScores
    answered: list[Answered]
    measured: dict[str, Measured]
    signatures: dict[str, str]


def candidate(name: str, result: CandidateResult, model: CandidateResult | None, shots: int = 0) -> Candidate:
    """Summarize a candidate. model: result of the evaluated model, to compare with.

    Raises RunFault if the two did not score the same tokens.
    """
    differences = None
    if model is not None:
        require_same_rows(result.scores, model.scores)
        shared = [name for name in result.measured if name in model.measured]
        differences = {name: difference(result.measured[name], model.measured[name]) for name in shared}
    metrics = {name: measured.as_json() for name, measured in result.measured.items()}
    return Candidate(name, shots, loss_of(result.scores), metrics, differences)


class Runner:
    """Runs the requests to a model as a job and computes the metrics."""

    def __init__(
        self,
        workspace: Path,
        names: tuple[str, ...],
        schema: Path | None,
        workers: int,
        batch_size: int | None,
        progress: Progress | None,
    ):
        self.workspace, self.names, self.schema = workspace, names, schema
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

        def report_progress(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(what, done, total)

        directory = self.workspace / job.name
        run_job(job, directory, workers=self.workers, progress=report_progress)
        return {name: self._result(directory, name, sampling is not None) for name, (_, sampling) in parts.items()}

    def _result(self, directory: Path, name: str, answers: bool) -> CandidateResult:
        scores = scores_of_part(directory, f"{name} rows")
        loss_of(scores)  # raises RunFault if no row has a target
        answered = answers_of_part(directory, f"{name} answers") if answers else []
        text, signatures = text_metrics(self.names, answered, self.schema) if answered else ({}, {})
        return CandidateResult(scores, answered, language(scores) | text, signatures)


def lines_of(result: CandidateResult) -> str:
    """Return JSON Lines with the scores and the generated answer of each row."""
    answers: dict[int, Any] = {answer.row: asdict(answer) for answer in result.answered}
    lines = []
    for line in score_lines(result.scores):
        if (answer := answers.get(line["id"])) is not None:
            copied = ("output", "reference", "stopped")
            line |= {key: answer[key] for key in copied} | {"num_generated_tokens": answer["num_tokens"]}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)

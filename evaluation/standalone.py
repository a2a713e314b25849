"""`tunesmith evaluate`: any model on any rows, alone or against a baseline on the same tokens."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.cache import cache_root
from tunesmith.data.encoders import options_of
from tunesmith.data.formats import guess_task
from tunesmith.data.index import TokenIndex
from tunesmith.data.prepare import prepare_file
from tunesmith.data.sources import cut, read, resolve
from tunesmith.errors import InputError
from tunesmith.evaluation.metrics.language import Comparison, LossMetrics, compare, loss_of
from tunesmith.evaluation.results import ExampleScores, write_scores
from tunesmith.evaluation.score import score_index
from tunesmith.evaluation.subject import Subject, find_subject

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class StandaloneEvaluation:
    """model, baseline: what was evaluated, for people. comparison: from the baseline to the model, row by row.
    num_rows: rows of the data; metrics.num_examples of them have a target. seconds: of scoring, loading included."""

    model: str
    data: list[str]
    task: str
    num_rows: int
    metrics: LossMetrics
    baseline: str | None
    baseline_metrics: LossMetrics | None
    comparison: Comparison | None
    seconds: float


def evaluate(
    model: str,
    data: Sequence[str],
    *,
    baseline: str | None = None,
    task: str | None = None,
    max_seq_len: int | None = None,
    too_long: str | None = None,
    max_rejects: int = 0,
    results: Path | None = None,
    progress: Progress | None = None,
) -> StandaloneEvaluation:
    """Score `model` (and `baseline`) on the rows of the files, patterns or directories `data`.

    model, baseline: a run directory, a Hugging Face directory, an adapter's, a GGUF file or a hub id.
    task, max_seq_len, too_long: None as in the run's recipe; without a run the task that the first row speaks for, the
    model's context, and `error` (`split` for text). results: a file that takes one line a row.
    progress: (what, done, in all).
    The baseline reads the model's tokens, so both must have one vocabulary. Raises InputError for what the user can
    mend, RunFault where a run is damaged or no token is a target.
    """
    started = time.perf_counter()
    subject = find_subject(model)
    other = find_subject(baseline) if baseline is not None else None
    if other is not None:
        _require_one_vocabulary(subject, other)
    recipe = subject.plan.recipe if subject.plan else None
    files = resolve(data, Path.cwd())
    if recipe is not None and recipe.task == "preference":
        raise InputError(
            "a run of the task preference is measured on pairs, against the model before training",
            where=subject.name,
            remedy="its own evaluations are in the report; to score it as a chat model, name its export directory",
        )
    task = task or (recipe.task if recipe else _task_of(files))
    index = TokenIndex.open(
        prepare_file(
            files,
            task,
            subject.tokenizer,
            max_seq_len=max_seq_len or (recipe.data.max_seq_len if recipe else subject.context),
            too_long=too_long or (recipe.data.too_long if recipe else "split" if task == "text" else "error"),
            max_rejects=max_rejects,
            cache=cache_root(),
            progress=progress,
            options=options_of(recipe, subject.plan.data.labels) if recipe and subject.plan else None,
        )
    )
    scores = _score(subject, index, "scoring", progress)
    metrics = loss_of(scores)
    if results is not None:
        write_scores(results, scores)
    reference = _score(other, index, "scoring the baseline", progress) if other is not None else None
    return StandaloneEvaluation(
        model=subject.name,
        data=[str(path) for path in files],
        task=task,
        num_rows=len(scores),
        metrics=metrics,
        baseline=other.name if other is not None else None,
        baseline_metrics=loss_of(reference) if reference is not None else None,
        comparison=compare(reference, scores) if reference is not None else None,
        seconds=time.perf_counter() - started,
    )


def _score(subject: Subject, index: TokenIndex, what: str, progress: Progress | None) -> ExampleScores:
    """Load, score, and let go of the weights: two models are never in memory together."""

    def say(done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    return score_index(subject.load(), index, progress=say)


def _require_one_vocabulary(subject: Subject, other: Subject) -> None:
    ours, theirs = (s.tokenizer.backend.get_vocab(with_added_tokens=True) for s in (subject, other))
    if ours != theirs:
        raise InputError(
            "the baseline has another vocabulary: losses over different tokens cannot be compared",
            where=f"{subject.name}: {len(ours)} tokens; {other.name}: {len(theirs)} tokens",
            remedy="choose a baseline of the same family, best the base model of the run",
        )


def _task_of(files: Sequence[Path]) -> str:
    """The task that the first readable row speaks for."""
    for path in files:
        for shard in cut(path):
            for line in read(shard):
                if (task := guess_task(line.value)) is not None:
                    return task
    raise InputError(
        "no row tells what kind of data this is",
        where=", ".join(map(str, files)),
        remedy='rows need "messages", "prompt" and "completion", or "text"; or say which with --task',
    )

"""`tunesmith evaluate`: any model on any rows, alone or against a baseline on the same tokens."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.cache import cache_root
from tunesmith.data.encoders.by_task import options_of
from tunesmith.data.index.prepare import first_task, prepare_file
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.readers.sources import resolve
from tunesmith.errors import InputError
from tunesmith.evaluation.by_task import classify, loss_of_labels, require_language_model
from tunesmith.evaluation.candidates import Candidate, Found, Progress, Runner, candidate, lines_of
from tunesmith.evaluation.few_shot import write_few_shot
from tunesmith.evaluation.metrics.language import Comparison, LossMetrics, compare, loss_of
from tunesmith.evaluation.subject import Subject, find_subject
from tunesmith.evaluation.text_metrics import chosen_metrics
from tunesmith.inference.types import Sampling
from tunesmith.rundir.atomic import write_json, write_text

ANSWERS = Sampling(max_new_tokens=256)


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


@dataclass(frozen=True)
class Asked:
    """What is measured, beside the loss. metrics: names, see text_metrics. sampling: of generated answers. schema: a
    file with a JSON schema for the metric json. few_shot: training rows of the run in the baseline's prompt."""

    metrics: tuple[str, ...] = ("language",)
    sampling: Sampling = ANSWERS
    schema: Path | None = None
    few_shot: int = 0


def evaluate(
    model: str,
    data: Sequence[str],
    *,
    baseline: str | None = None,
    asked: Asked | None = None,
    workers: int = 1,
    batch_size: int | None = None,
    task: str | None = None,
    max_seq_len: int | None = None,
    too_long: str | None = None,
    max_rejects: int = 0,
    out: Path | None = None,
    progress: Progress | None = None,
) -> StandaloneEvaluation:
    """Score `model` (and `baseline`) on the rows of the files, patterns or directories `data`.

    model, baseline: a run directory, a Hugging Face directory, an adapter's, a GGUF file or a hub id. A baseline with
    examples needs a run, whose base model is the default.
    workers: processes that share the work. batch_size: sequences of a forward pass at most.
    task, max_seq_len, too_long: None as in the run's recipe; without a run the task that the first row speaks for, the
    model's context, and `error` (`split` for text). out: a directory that takes summary.json and a line a row, and
    keeps what is done, so that the same call goes on after a kill. progress: (what, done, in all).
    The baseline reads the model's tokens, so both must have one vocabulary. Raises InputError for what the user can
    mend, RunFault where a run is damaged or no token is a target.
    """
    started = time.perf_counter()
    asked = asked or Asked()
    names = chosen_metrics(asked.metrics)
    subject = find_subject(model)
    options = {"--few-shot": asked.few_shot, "--baseline": baseline, "--metrics": names, "--task": task}
    for option, wanted in options.items():
        if wanted:
            require_language_model(subject, option)
    if asked.few_shot and baseline is None:
        baseline = _base_of(subject)
    other = find_subject(baseline) if baseline is not None else None
    if other is not None:
        require_language_model(other, "--baseline")
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
    index = prepare_file(
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
    if task == "classification":
        return _classified(subject, files, index, out, started)
    sampling = asked.sampling if names else None
    with _workspace(out) as place:
        run = Runner(place, names, asked.schema, workers, batch_size, progress)
        found = {"model": run(model, subject, {"model": (index, sampling)}, "scoring")["model"]}
        shots = 0
        if other is not None:
            assert baseline is not None
            parts: dict[str, tuple[Path, Sampling | None]] = {"baseline": (index, sampling)}
            if asked.few_shot:
                shots = _few_shot(subject, index, place / f"few-shot-{asked.few_shot}", asked.few_shot)
                # Plain text has no prompt to answer: examples before it change what is continued.
                parts["few_shot"] = (place / f"few-shot-{asked.few_shot}", None if task == "text" else sampling)
            found |= run(baseline, other, parts, "scoring the baseline")
    result = _result(subject, other, files, task, found, shots, time.perf_counter() - started)
    if out is not None:
        for role, one in found.items():
            write_text(out / ("results.jsonl" if role == "model" else f"{role}.jsonl"), lines_of(one))
        write_json(out / "summary.json", result.as_json())
    return result


def _classified(
    subject: Subject, files: Sequence[Path], index: Path, out: Path | None, started: float
) -> StandaloneEvaluation:
    with _workspace(out):
        found = classify(subject, index, None if out is None else out / "results.jsonl")
    result = _result(subject, None, files, "classification", {"model": found}, 0, time.perf_counter() - started)
    loss = loss_of_labels(found)
    result = replace(result, metrics=loss, candidates={"model": replace(result.candidates["model"], loss=loss)})
    if out is not None:
        write_json(out / "summary.json", result.as_json())
    return result


def _result(
    subject: Subject,
    other: Subject | None,
    files: Sequence[Path],
    task: str,
    found: dict[str, Found],
    shots: int,
    seconds: float,
) -> StandaloneEvaluation:
    model, reference = found["model"], found.get("baseline")
    candidates = {"model": candidate(subject.name, model, None)}
    for role, one in found.items():
        if role != "model" and other is not None:
            candidates[role] = candidate(other.name, one, model, shots if role == "few_shot" else 0)
    return StandaloneEvaluation(
        model=subject.name,
        data=[str(path) for path in files],
        task=task,
        num_rows=len(model.scores),
        metrics=loss_of(model.scores),
        baseline=other.name if other is not None else None,
        baseline_metrics=loss_of(reference.scores) if reference is not None else None,
        comparison=compare(reference.scores, model.scores) if reference is not None else None,
        seconds=seconds,
        candidates=candidates,
        signatures=model.signatures,
    )


@contextmanager
def _workspace(out: Path | None) -> Iterator[Path]:
    """Where jobs live: kept under `out`, else in the cache for the time of the evaluation."""
    try:
        if out is not None:
            (out / "work").mkdir(parents=True, exist_ok=True)
            yield out / "work"
            return
        folder = cache_root() / "evaluations"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the results cannot be written: {error.strerror}",
            where=str(error.filename or out),
            remedy="choose another directory with --out",
        ) from error
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _base_of(subject: Subject) -> str:
    if subject.plan is None:
        raise InputError(
            "a few-shot comparison needs training rows, and only a run has them",
            where=f"{subject.name} with --few-shot",
            remedy="name a run instead of a model, or leave --few-shot out",
        )
    return subject.plan.model.directory


def _few_shot(subject: Subject, index: Path, directory: Path, shots: int) -> int:
    _base_of(subject)
    assert subject.plan is not None
    train = Path(subject.plan.data.train.index)
    if not train.is_dir():
        raise InputError(
            "the run's prepared training rows are no longer in the cache",
            where=str(train),
            remedy="`tunesmith plan` on the run's recipe prepares them again",
        )
    context = subject.context
    return write_few_shot(
        directory, TokenIndex.open(train), TokenIndex.open(index), subject.tokenizer, shots=shots, context=context
    )


def _require_one_vocabulary(subject: Subject, other: Subject) -> None:
    ours, theirs = (s.tokenizer.backend.get_vocab(with_added_tokens=True) for s in (subject, other))
    if ours != theirs:
        raise InputError(
            "the baseline has another vocabulary: losses over different tokens cannot be compared",
            where=f"{subject.name}: {len(ours)} tokens; {other.name}: {len(theirs)} tokens",
            remedy="choose a baseline of the same family, best the base model of the run",
        )


def _task_of(files: Sequence[Path]) -> str:
    if (task := first_task(files)) is not None:
        return task
    raise InputError(
        "no row tells what kind of data this is",
        where=", ".join(map(str, files)),
        remedy='rows need "messages", "prompt" and "completion", or "text"; or say which with --task',
    )

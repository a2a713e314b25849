"""`tunesmith evaluate`: any model on any rows, alone or against a baseline on the same tokens."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tunesmith.configs.tasks import TASKS
from tunesmith.data.cache import cache_root
from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.index.prepare import first_task, prepare_file
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.readers.sources import resolve
from tunesmith.errors import InputError
from tunesmith.evaluation.by_task import classify, loss_of_labels, require_language_model
from tunesmith.evaluation.candidates import CandidateResult, Progress, Runner, lines_of
from tunesmith.evaluation.few_shot import write_few_shot
from tunesmith.evaluation.standalone_result import Asked, EvaluationRequest, StandaloneEvaluation, result_of
from tunesmith.evaluation.subject import Subject, find_subject
from tunesmith.evaluation.text_metrics import chosen_metrics
from tunesmith.inference.types import Sampling
from tunesmith.rundir.atomic import write_json, write_text


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
    for option, given in {
        "--few-shot": asked.few_shot,
        "--baseline": baseline,
        "--metrics": names,
        "--task": task,
    }.items():
        if given:
            require_language_model(subject, option)
    if asked.few_shot and baseline is None:
        baseline = _base_of(subject)
    other = None if baseline is None else _find_baseline(subject, baseline)
    files = resolve(data, Path.cwd())
    if subject.plan is not None:
        _evaluator(subject.plan.recipe.task, subject)
    task = task or (subject.plan.recipe.task if subject.plan else _task_of(files))
    index = prepare_file(
        files,
        _encoding_spec(subject, task, max_seq_len, too_long),
        subject.tokenizer,
        max_rejects=max_rejects,
        cache=cache_root(),
        progress=progress,
    )
    request = EvaluationRequest(
        model, subject, baseline, other, files, task, index, asked, names, workers, batch_size, out, progress, started
    )
    return _evaluator(task, subject)(request)


def _evaluate_tokens(request: EvaluationRequest) -> StandaloneEvaluation:
    """A model that writes text, and its baselines: by processes that share the rows."""
    with _workspace(request.out) as place:
        run = Runner(place, request.names, request.asked.schema, request.workers, request.batch_size, request.progress)
        sampling = request.asked.sampling if request.names else None
        found = {"model": run(request.model, request.subject, {"model": (request.index, sampling)}, "scoring")["model"]}
        baselines, shots = _evaluate_baselines(request, run, place, sampling)
        found |= baselines
    result = result_of(request, found, shots)
    if request.out is not None:
        for role, one in found.items():
            write_text(request.out / ("results.jsonl" if role == "model" else f"{role}.jsonl"), lines_of(one))
        write_json(request.out / "summary.json", result.as_json())
    return result


def _evaluate_baselines(
    request: EvaluationRequest, run: Runner, place: Path, sampling: Sampling | None
) -> tuple[dict[str, CandidateResult], int]:
    """The baseline, and with examples in its prompt where asked for; how many examples. Nothing without a baseline."""
    if request.other is None:
        return {}, 0
    assert request.baseline is not None
    parts: dict[str, tuple[Path, Sampling | None]] = {"baseline": (request.index, sampling)}
    shots = 0
    if count := request.asked.few_shot:
        shots = _few_shot(request.subject, request.index, place / f"few-shot-{count}", count)
        # Text without a prompt is not answered: examples before it change what is continued.
        answers = TASKS[request.task].has_prompt
        parts["few_shot"] = (place / f"few-shot-{count}", sampling if answers else None)
    return run(request.baseline, request.other, parts, "scoring the baseline"), shots


def _evaluate_labels(request: EvaluationRequest) -> StandaloneEvaluation:
    """A classifier, in this process."""
    out = request.out
    with _workspace(out):
        found = classify(request.subject, request.index, None if out is None else out / "results.jsonl")
    result = result_of(request, {"model": found}, 0)
    loss = loss_of_labels(found)
    result = replace(result, metrics=loss, candidates={"model": replace(result.candidates["model"], loss=loss)})
    if out is not None:
        write_json(out / "summary.json", result.as_json())
    return result


STANDALONE: dict[str, Callable[[EvaluationRequest], StandaloneEvaluation] | None] = {
    "chat": _evaluate_tokens,
    "completion": _evaluate_tokens,
    "text": _evaluate_tokens,
    "classification": _evaluate_labels,
    "seq2seq": _evaluate_tokens,
    "preference": None,
    "kto": None,
}
"""By task of the rows; None where only the run itself has what its rows are compared with."""


def _find_baseline(subject: Subject, baseline: str) -> Subject:
    other = find_subject(baseline)
    require_language_model(other, "--baseline")
    _require_one_vocabulary(subject, other)
    return other


def _evaluator(task: str, subject: Subject) -> Callable[[EvaluationRequest], StandaloneEvaluation]:
    """InputError where only the run itself can score rows of this task."""
    if (evaluator := STANDALONE[task]) is not None:
        return evaluator
    raise InputError(
        f"a run of the task {task} is measured on {TASKS[task].counts}, against the model before training",
        where=subject.name,
        remedy="its own evaluations are in the report; to score it as a chat model, name its export directory",
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


def _encoding_spec(subject: Subject, task: str, max_seq_len: int | None, too_long: str | None) -> EncodingSpec:
    """How rows become tokens: as in the subject's run, where it has one and nothing else was said."""
    if subject.plan is None:
        default = "error" if TASKS[task].has_prompt else "split"
        return EncodingSpec(task, max_seq_len or subject.context, too_long or default)
    recipe, labels = subject.plan.recipe, subject.plan.data.labels
    return EncodingSpec.of(recipe, labels, task=task, max_seq_len=max_seq_len, too_long=too_long)


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

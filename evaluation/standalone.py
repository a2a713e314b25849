"""`tunesmith evaluate`: score a model on rows, optionally against a baseline on the same tokens."""

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
from tunesmith.evaluation.standalone_result import EvaluationOptions, EvaluationRequest, StandaloneEvaluation, result_of
from tunesmith.evaluation.subject import Subject, find_subject
from tunesmith.evaluation.text_metrics import chosen_metrics
from tunesmith.inference.types import Sampling
from tunesmith.rundir.atomic import write_json, write_text


def evaluate(
    model: str,
    data: Sequence[str],
    *,
    baseline: str | None = None,
    evaluation: EvaluationOptions | None = None,
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

    model, baseline: run directory, Hugging Face directory, adapter directory, GGUF file or hub id. A few-shot baseline
    requires a run; its default is the base model of the run.
    workers: number of processes. batch_size: maximum number of sequences per forward pass.
    task, max_seq_len, too_long: None: as in the run's recipe; without a run, the task is inferred from the first row,
    max_seq_len is the model's context and too_long is `error` (`split` for text). out: directory for summary.json, the
    per-row results and the completed batches, so that the same call continues after a kill. progress: called with
    (activity, done, total).
    The baseline scores the model's tokens, so both need the same vocabulary. Raises InputError for errors that the user
    can fix, RunFault if a run is damaged or no token is supervised.
    """
    started = time.perf_counter()
    options = evaluation or EvaluationOptions()
    names = chosen_metrics(options.metrics)
    subject = find_subject(model)
    for option, value in {
        "--few-shot": options.few_shot,
        "--baseline": baseline,
        "--metrics": names,
        "--task": task,
    }.items():
        if value:
            require_language_model(subject, option)
    if options.few_shot and baseline is None:
        baseline = _base_of(subject)
    baseline_subject = None if baseline is None else _find_baseline(subject, baseline)
    files = resolve(data, Path.cwd())
    if subject.plan is not None:
        _evaluator(subject.plan.recipe.task, subject)
    task = task or (subject.plan.recipe.task if subject.plan else _task_of(files))
    index = prepare_file(
        files,
        _encoding_spec(subject, task, max_seq_len, too_long),
        subject.tokenizer,
        max_rejects=max_rejects,
        csv_delimiter=subject.plan.recipe.data.csv_delimiter if subject.plan else None,
        cache=cache_root(),
        progress=progress,
    )
    request = EvaluationRequest(
        model,
        subject,
        baseline,
        baseline_subject,
        files,
        task,
        index,
        options,
        names,
        workers,
        batch_size,
        out,
        progress,
        started,
    )
    return _evaluator(task, subject)(request)


def _evaluate_tokens(request: EvaluationRequest) -> StandaloneEvaluation:
    """Evaluate a generative model and its baselines, with worker processes."""
    with _workspace(request.out) as workspace:
        run = Runner(
            workspace, request.names, request.options.schema, request.workers, request.batch_size, request.progress
        )
        sampling = request.options.sampling if request.names else None
        parts = {"model": (request.index, sampling)}
        results = run(request.model, request.subject, parts, "scoring")
        baselines, shots = _evaluate_baselines(request, run, workspace, sampling)
        results |= baselines
    result = result_of(request, results, shots)
    if request.out is not None:
        for role, rows in results.items():
            write_text(request.out / ("results.jsonl" if role == "model" else f"{role}.jsonl"), lines_of(rows))
        write_json(request.out / "summary.json", result.as_json())
    return result


def _evaluate_baselines(
    request: EvaluationRequest, run: Runner, workspace: Path, sampling: Sampling | None
) -> tuple[dict[str, CandidateResult], int]:
    """Evaluate the baseline and, if requested, the few-shot baseline; return the results and the number of examples."""
    if request.baseline_subject is None:
        return {}, 0
    assert request.baseline is not None
    parts: dict[str, tuple[Path, Sampling | None]] = {"baseline": (request.index, sampling)}
    shots = 0
    if count := request.options.few_shot:
        shots = _few_shot(request.subject, request.index, workspace / f"few-shot-{count}", count)
        # Text without a prompt is continued, not answered: examples would change the text to continue.
        answers = TASKS[request.task].has_prompt
        parts["few_shot"] = (workspace / f"few-shot-{count}", sampling if answers else None)
    return run(request.baseline, request.baseline_subject, parts, "scoring the baseline"), shots


def _evaluate_labels(request: EvaluationRequest) -> StandaloneEvaluation:
    """Evaluate a classifier, in this process."""
    out = request.out
    with _workspace(out):
        labels = classify(request.subject, request.index, None if out is None else out / "results.jsonl")
    result = result_of(request, {"model": labels}, 0)
    loss = loss_of_labels(labels)
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
"""By task of the rows; None for tasks whose reference scores exist in the run only."""


def _find_baseline(subject: Subject, baseline: str) -> Subject:
    other = find_subject(baseline)
    require_language_model(other, "--baseline")
    _require_one_vocabulary(subject, other)
    return other


def _evaluator(task: str, subject: Subject) -> Callable[[EvaluationRequest], StandaloneEvaluation]:
    """Return the evaluator of a task. Raises InputError if only the run itself can score its rows."""
    if (evaluator := STANDALONE[task]) is not None:
        return evaluator
    raise InputError(
        f"a run of task {task} is evaluated on {TASKS[task].counts}, relative to the model before training",
        where=subject.name,
        remedy="see the evaluations in its report; to score it as a chat model, pass its export directory",
    )


@contextmanager
def _workspace(out: Path | None) -> Iterator[Path]:
    """Directory for jobs: permanent under `out`, or temporary in the cache."""
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
            remedy="choose a different directory with --out",
        ) from error
    workspace = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _base_of(subject: Subject) -> str:
    if subject.plan is None:
        raise InputError(
            "--few-shot requires the training rows of a run",
            where=f"{subject.name} is not a run",
            remedy="pass a run instead of a model, or omit --few-shot",
        )
    return subject.plan.model.directory


def _few_shot(subject: Subject, index: Path, directory: Path, shots: int) -> int:
    _base_of(subject)
    assert subject.plan is not None
    train = Path(subject.plan.data.train.index)
    if not train.is_dir():
        raise InputError(
            "the prepared training rows of the run are not in the cache",
            where=str(train),
            remedy="run `tunesmith plan` on the run's recipe to prepare them again",
        )
    context = subject.context
    return write_few_shot(
        directory, TokenIndex.open(train), TokenIndex.open(index), subject.tokenizer, shots=shots, context=context
    )


def _encoding_spec(subject: Subject, task: str, max_seq_len: int | None, too_long: str | None) -> EncodingSpec:
    """How rows are encoded: as in the subject's run, unless overridden."""
    if subject.plan is None:
        default = "error" if TASKS[task].has_prompt else "split"
        return EncodingSpec(task, max_seq_len or subject.context, too_long or default)
    recipe, labels = subject.plan.recipe, subject.plan.data.labels
    spec = EncodingSpec.of(recipe, labels, task=task, max_seq_len=max_seq_len, too_long=too_long)
    return spec if task == recipe.task else replace(spec, columns=None)  # they name the keys of the run's task


def _require_one_vocabulary(subject: Subject, other: Subject) -> None:
    vocab, other_vocab = (s.tokenizer.backend.get_vocab(with_added_tokens=True) for s in (subject, other))
    if vocab != other_vocab:
        raise InputError(
            "the baseline has a different vocabulary: losses over different tokens cannot be compared",
            where=f"{subject.name}: {len(vocab)} tokens; {other.name}: {len(other_vocab)} tokens",
            remedy="choose a baseline of the same model family, such as the base model of the run",
        )


def _task_of(files: Sequence[Path]) -> str:
    if (task := first_task(files)) is not None:
        return task
    raise InputError(
        "the task cannot be inferred from the rows",
        where=", ".join(map(str, files)),
        remedy='use rows with "messages", "prompt" and "completion", or "text"; or set --task',
    )

"""Validates a job's files for its base model (rows, tokens, receipts) and builds its recipe.

The tokens are written to the cache, where the run reuses them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.data import Deidentify
from tunesmith.data.check import CheckSummary, check_recipe
from tunesmith.errors import InputError
from tunesmith.launcher.planning.prepare_run import find_model, find_tokenizer
from tunesmith.report.wording import omissions
from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.hyperparameters import Setting, resolve
from tunesmith.serving.jobs.integrations import trackers_of
from tunesmith.serving.jobs.recipe import TrainingRequest, recipe_of
from tunesmith.serving.jobs.rows import MAX_REPORTED, check_rows, describe, invalid


@dataclass(frozen=True)
class Files:
    """Copies in the job's directory; the uploaded files may be deleted."""

    train: Path
    validation: Path | None


@dataclass(frozen=True)
class JobRequest:
    """The job as requested. base: directory or GGUF file. hyperparameters: may contain `"auto"`."""

    job_id: str
    base: Path
    start_from: Path | None
    method: str
    hyperparameters: Mapping[str, Setting]
    seed: int
    deidentify: Deidentify | None = None
    split_special_tokens: bool = True
    integrations: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Note:
    """A summary of receipts, for an event. key: identifies its source."""

    key: str
    level: str
    message: str


@dataclass(frozen=True)
class Validated:
    """A validated job. base: the directory of the base, or that of its conversion from GGUF."""

    recipe: Recipe
    base: Path
    numbers: dict[str, float]
    notes: list[Note]


def validate(request: JobRequest, files: Files) -> Validated:
    """Validate the files and build the recipe. Raises JobFault for an invalid file or an unsuitable base."""
    kind, num_train = check_rows(files.train, request.method, "training_file")
    if files.validation is not None:
        check_rows(files.validation, request.method, "validation_file", kind)
    numbers = resolve(request.method, request.hyperparameters, num_train)
    training = TrainingRequest(
        job_id=request.job_id,
        base=request.base,
        start_from=request.start_from,
        method=request.method,
        kind=kind,
        numbers=numbers,
        seed=request.seed,
        num_examples=num_train,
        train=files.train,
        validation=files.validation,
        context=None,
        deidentify=request.deidentify,
        split_special_tokens=request.split_special_tokens,
        trackers=trackers_of(request.integrations),
    )
    try:
        model = find_model(recipe_of(training), Path.cwd())
        recipe = recipe_of(replace(training, context=model.max_positions))
        summary = check_recipe(recipe, find_tokenizer(recipe, Path.cwd()), recipe_dir=Path.cwd(), limit=10_000)
    except InputError as error:
        raise JobFault(
            "model_unsupported", f"The base model cannot be used for this job: {error.what}", "model"
        ) from error
    overlap = _checked_rejects(summary, num_train)
    if overlap and overlap == summary.splits["validation"]["rows"]:  # nothing is left of it; the hosted API trains, too
        recipe = recipe_of(replace(training, context=model.max_positions, validation=None))
    elif overlap:
        data = recipe.data.model_copy(update={"max_rejects": overlap})
        recipe = recipe.model_copy(update={"data": data})
    return Validated(recipe, Path(model.directory), numbers, _notes(summary, overlap, recipe))


def _checked_rejects(summary: CheckSummary, num_train: int) -> int:
    """The number of validation rows dropped because they are training rows, too. Raises JobFault for any other rejected
    row."""
    overlap = 0
    for param, first in (("training_file", 0), ("validation_file", num_train)):
        errors = []
        for reject in summary.rejects:
            if (reject.row >= num_train) != (param == "validation_file"):
                continue
            if reject.code == "equals_training_row":
                overlap += 1
                continue
            errors.append(describe(reject.row - first + 1, reject.reason, reject.remedy))
        if errors:
            raise invalid(param, errors[:MAX_REPORTED])
    return overlap


def _notes(summary: CheckSummary, overlap: int, recipe: Recipe) -> list[Note]:
    notes, max_seq_len, splits = [], recipe.data.max_seq_len, recipe.data.split_special_tokens
    for split, name in (("train", "Training file"), ("validation", "Validation file")):
        if (facts := summary.splits.get(split)) is None:
            continue
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in facts["fates"].items() if count)
        counts = f"{name}: {facts['rows']} examples ({outcomes}), {facts['tokens']} tokens, "
        notes.append(Note(f"receipts:{split}", "info", counts + f"{facts['supervised_tokens']} of them trained"))
        if cut := facts["fates"].get("truncated"):
            lost = facts["lost_supervised_tokens"]
            message = (
                f"{name}: {cut} example(s) longer than {max_seq_len} tokens are truncated at the end; "
                f"{lost} trained tokens are lost"
            )
            notes.append(Note(f"receipts:{split}:cut", "warn", message))
        if facts["duplicates"]:
            message = f"{name}: {facts['duplicates']} example(s) are duplicates of earlier ones"
            notes.append(Note(f"receipts:{split}:duplicates", "warn", message))
    if special := summary.special_token_rows:
        message = f"{special} example(s) contain special tokens of the model in their messages, which are read as text"
        if not splits:
            message = f"{special} example(s) contain special tokens of the model in their messages"
        notes.append(Note("receipts:special_tokens", "warn", message))
    if summary.omitted:
        message = f"The base model's chat template omits {omissions(summary.omitted)}; the rest of them is trained"
        notes.append(Note("receipts:omitted", "warn", message))
    if overlap:
        message = f"Validation file: {overlap} example(s) are in the training file as well and are dropped"
        if overlap == summary.splits["validation"]["rows"]:
            message = "Validation file: all examples are in the training file as well; the job runs without validation"
        notes.append(Note("receipts:validation:twins", "warn", message))
    return notes

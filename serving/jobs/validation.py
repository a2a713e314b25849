"""The files of a job against the model that it trains: rows, tokens, receipts; and the recipe that comes of it.

The tokens that are made here are kept in the cache: the run finds them there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.configs.recipe import Deidentify, Recipe
from tunesmith.data.check import CheckSummary, check_recipe
from tunesmith.errors import InputError
from tunesmith.launcher.planning.prepare_run import find_model, find_tokenizer
from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.hyperparameters import Setting, chosen
from tunesmith.serving.jobs.recipe import TrainingRequest, recipe_of
from tunesmith.serving.jobs.rows import MAX_TOLD, check_rows, describe, invalid


@dataclass(frozen=True)
class Files:
    """Copies in the job's own directory: the uploaded ones may be deleted meanwhile."""

    train: Path
    validation: Path | None


@dataclass(frozen=True)
class JobRequest:
    """What a create asked for. base: directory or GGUF file. hyperparameters: as given."""

    job_id: str
    base: Path
    start_from: Path | None
    method: str
    hyperparameters: Mapping[str, Setting]
    seed: int
    deidentify: Deidentify | None = None


@dataclass(frozen=True)
class Note:
    """What the receipts tell, as an event. key: of its source."""

    key: str
    level: str
    message: str


@dataclass(frozen=True)
class Validated:
    """base: the directory that the base was found in, or was converted to."""

    recipe: Recipe
    base: Path
    numbers: dict[str, float]
    notes: list[Note]


def validate(request: JobRequest, files: Files) -> Validated:
    """Raises JobFault with the API's code for what is wrong with a file, or where the base does not serve the job."""
    kind, num_train = check_rows(files.train, request.method, "training_file")
    if files.validation is not None:
        check_rows(files.validation, request.method, "validation_file", kind)
    numbers = chosen(request.method, request.hyperparameters, num_train)
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
    )
    try:
        model = find_model(recipe_of(training), Path.cwd())
        recipe = recipe_of(replace(training, context=model.max_positions))
        summary = check_recipe(recipe, find_tokenizer(recipe, Path.cwd()), recipe_dir=Path.cwd(), limit=10_000)
    except InputError as error:
        raise JobFault("model_unsupported", f"The base model does not serve this job: {error.what}", "model") from error
    twins = _checked_rejects(summary, num_train)
    if twins:
        data = recipe.data.model_copy(update={"max_rejects": twins})
        recipe = recipe.model_copy(update={"data": data})
    return Validated(recipe, Path(model.directory), numbers, _notes(summary, twins, recipe.data.max_seq_len))


def _checked_rejects(summary: CheckSummary, num_train: int) -> int:
    """How many validation rows are left out since they are trained. Raises JobFault for any other refused row."""
    twins = 0
    for param, first in (("training_file", 0), ("validation_file", num_train)):
        faults = []
        for reject in summary.rejects:
            if (reject.row >= num_train) != (param == "validation_file"):
                continue
            if reject.code == "equals_training_row":
                twins += 1
                continue
            faults.append(describe(reject.row - first + 1, reject.reason, reject.remedy))
        if faults:
            raise invalid(param, faults[:MAX_TOLD])
    held_out = summary.splits.get("validation")
    if held_out is not None and twins == held_out["rows"]:
        raise invalid("validation_file", ["Every example of it stands in the training file as well."])
    return twins


def _notes(summary: CheckSummary, twins: int, max_seq_len: int) -> list[Note]:
    notes = []
    for split, name in (("train", "Training file"), ("validation", "Validation file")):
        if (facts := summary.splits.get(split)) is None:
            continue
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in facts["fates"].items() if count)
        told = f"{name}: {facts['rows']} examples ({outcomes}), {facts['tokens']} tokens, of which "
        notes.append(Note(f"receipts:{split}", "info", told + f"{facts['supervised_tokens']} are trained"))
        if cut := facts["fates"].get("truncated"):
            lost = facts["lost_supervised_tokens"]
            message = (
                f"{name}: {cut} example(s) are longer than {max_seq_len} tokens and are cut at the end; "
                f"{lost} trained tokens are lost"
            )
            notes.append(Note(f"receipts:{split}:cut", "warn", message))
        if facts["duplicates"]:
            message = f"{name}: {facts['duplicates']} example(s) are equal to an earlier one"
            notes.append(Note(f"receipts:{split}:duplicates", "warn", message))
    if twins:
        message = f"Validation file: {twins} example(s) stand in the training file as well and are left out"
        notes.append(Note("receipts:validation:twins", "warn", message))
    return notes

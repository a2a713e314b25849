"""Creating jobs: all forms of hyperparameters, defaults, and immediate errors."""

from collections.abc import Mapping
from typing import Any

from tunesmith.serving.conformance.bench import FINAL, Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.rows import chat_rows, completion_rows
from tunesmith.serving.conformance.shapes import expect_error, require_shape

FIELDS = (
    *("id", "created_at", "finished_at", "model", "fine_tuned_model", "organization_id", "status", "training_file"),
    *("validation_file", "result_files", "hyperparameters", "method", "seed", "trained_tokens", "error"),
    *("estimated_finish", "integrations", "metadata"),
)
NUMBERS = ("n_epochs", "batch_size", "learning_rate_multiplier")


def _object(bench: Bench) -> None:
    job = bench.create_from_rows(chat_rows(12), suffix="shape")
    require_shape(job, FIELDS)
    require(job.id.startswith("ftjob-"), f"the id is {job.id!r}")
    require(job.status in ("validating_files", "queued", "running"), f"a new job is {job.status}")
    for name in ("finished_at", "fine_tuned_model", "trained_tokens"):
        require(getattr(job, name) is None, f"{name} of a new job is {getattr(job, name)!r}, not null")
    require_equal(job.model, bench.base, "model")
    require_shape(bench.retrieve(job.id), FIELDS)
    _cancel(bench, job.id)


def _seed(bench: Bench) -> None:
    file = bench.file(chat_rows(12)).id
    unseeded = bench.create(training_file=file)
    require(type(unseeded.to_dict().get("seed")) is int, f"without a seed, seed is {unseeded.to_dict().get('seed')!r}")
    seeded = bench.create(training_file=file, seed=0)
    require_equal(seeded.to_dict().get("seed"), 0, "the seed of the request")
    _cancel(bench, unseeded.id, seeded.id)


def _supervised(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def _older_form(bench: Bench) -> None:
    hyperparameters = {"n_epochs": 2, "batch_size": 3, "learning_rate_multiplier": 0.5}
    _require_numbers(bench, hyperparameters, hyperparameters=hyperparameters)


def _method_form(bench: Bench) -> None:
    hyperparameters = {"n_epochs": 1, "batch_size": 2, "learning_rate_multiplier": 1.5}
    _require_numbers(bench, hyperparameters, method=_supervised(hyperparameters))


def _mixed_form(bench: Bench) -> None:
    hyperparameters = {"n_epochs": 2, "batch_size": "auto"}
    _require_numbers(bench, {"n_epochs": 2}, method=_supervised(hyperparameters))


def _auto(bench: Bench) -> None:
    auto: dict[str, Any] = dict.fromkeys(NUMBERS, "auto")
    _require_numbers(bench, {}, method=_supervised(auto))


def _absent(bench: Bench) -> None:
    _require_numbers(bench, {})


def _require_numbers(bench: Bench, expected: Mapping[str, float], **fields: Any) -> None:
    """After file validation, a job reports numbers in both places: those requested, and chosen ones for the rest."""
    job = bench.create_from_rows(chat_rows(12), **fields)
    job = bench.wait(
        job.id, lambda now: now.status in FINAL or _is_chosen(now) or now.status == "running", "chosen hyperparameters"
    )
    if not expected and not _is_chosen(job) and job.status == "queued":
        job = bench.wait(job.id, lambda now: now.status in (*FINAL, "running"), "a running job")
    require(job.status != "failed", f"the job failed: {job.error}")
    reported = job.hyperparameters.to_dict()
    for name in NUMBERS:
        require(
            _is_number(reported.get(name)),
            f"hyperparameters.{name} is {reported.get(name)!r} when the job is {job.status}",
        )
    for name, value in expected.items():
        require_equal(reported[name], value, f"hyperparameters.{name}")
    sent = job.to_dict().get("method")
    require(isinstance(sent, dict) and sent.get("type") == "supervised", f"method is {sent!r}")
    inner = sent["supervised"]["hyperparameters"]  # type: ignore[index]
    require_equal(
        {name: inner.get(name) for name in NUMBERS},
        {name: reported[name] for name in NUMBERS},
        "the hyperparameters of method",
    )
    _cancel(bench, job.id)


def _is_chosen(job: Any) -> bool:
    return all(_is_number(job.hyperparameters.to_dict().get(name)) for name in NUMBERS)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _metadata(bench: Bench) -> None:
    labels = {"team": "night shift", "k" * 64: "v" * 512}
    job = bench.create_from_rows(chat_rows(12), metadata=labels)
    require_equal(job.to_dict().get("metadata"), {"conformance": bench.label, **labels}, "metadata")
    _cancel(bench, job.id)
    file = job.training_file
    for invalid in ({str(n): "v" for n in range(17)}, {"k" * 65: "v"}, {"k": "v" * 513}):
        expect_error(
            lambda m=invalid: bench.strict.fine_tuning.jobs.create(model=bench.base, training_file=file, metadata=m)
        )


def _suffix(bench: Bench) -> None:
    file = bench.file(chat_rows(12)).id
    job = bench.create(training_file=file, suffix="s" * 64)
    _cancel(bench, job.id)
    jobs = bench.strict.fine_tuning.jobs
    expect_error(lambda: jobs.create(model=bench.base, training_file=file, suffix="s" * 65), param="suffix")


def _unknown_model(bench: Bench) -> None:
    file = bench.file(chat_rows(12)).id
    for model in ("no-such-model-anywhere", "ft:no-such:org::12345678"):
        expect_error(lambda m=model: bench.strict.fine_tuning.jobs.create(model=m, training_file=file))


def _unknown_file(bench: Bench) -> None:
    jobs = bench.strict.fine_tuning.jobs
    missing = "file-thereisnosuchfilehere00"
    expect_error(lambda: jobs.create(model=bench.base, training_file=missing), (400, 404))
    file = bench.file(chat_rows(12)).id
    expect_error(lambda: jobs.create(model=bench.base, training_file=file, validation_file=missing), (400, 404))


def _completion_rows(bench: Bench) -> None:
    job = bench.create_from_rows(completion_rows(12))
    job = bench.wait(job.id, lambda now: now.status != "validating_files", "validated files")
    require(job.status != "failed", f"a job with prompt-completion rows failed: {job.error}")
    _cancel(bench, job.id)


def _reinforcement(bench: Bench) -> None:
    file = bench.file(chat_rows(12)).id
    grader = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "operation": "eq"}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": {**grader, "reference": "yes"}}}
    expect_error(lambda: bench.strict.fine_tuning.jobs.create(model=bench.base, training_file=file, method=method))
    expect_error(lambda: bench.strict.fine_tuning.alpha.graders.validate(grader={**grader, "reference": "a"}))  # pyright: ignore


def _wrong_numbers(bench: Bench) -> None:
    file = bench.file(chat_rows(12)).id
    for invalid in ({"n_epochs": 0}, {"batch_size": "many"}, {"learning_rate_multiplier": -1}):
        method: Any = _supervised(invalid)
        expect_error(
            lambda m=method: bench.strict.fine_tuning.jobs.create(model=bench.base, training_file=file, method=m)
        )


def _integrations(bench: Bench) -> None:
    """Weights & Biases needs a key and internet access: a server accepts it or returns an error."""
    wandb: Any = [{"type": "wandb", "wandb": {"project": "conformance"}}]
    file = bench.file(chat_rows(12)).id
    try:
        job = bench.create(bench.strict, training_file=file, integrations=wandb)
    except Exception as error:
        raised = error
        expect_error(lambda: _raise(raised), param="integrations")
        return
    sent = job.to_dict().get("integrations")
    _cancel(bench, job.id)
    require(sent, "integrations were accepted but are not returned")


def _raise(error: Exception) -> None:
    raise error


def _cancel(bench: Bench, *ids: str) -> None:
    """Cancel jobs that have not finished, so that they do not delay later jobs."""
    for id in ids:
        if bench.retrieve(id).status not in FINAL:
            bench.client.fine_tuning.jobs.cancel(id)


CHECKS = (
    Check("create: job object", "`fine_tuning.job`: all fields, with the types of the package", _object),
    Check("create: seed", "chosen if absent, always returned", _seed),
    Check("create: no hyperparameters", "hyperparameters are optional", _absent),
    Check("create: older form", "top-level `hyperparameters`, the older form, are accepted", _older_form),
    Check("create: method", "`method` {type, supervised: {hyperparameters}}", _method_form),
    Check("create: some numbers", "each hyperparameter may be a number, `auto` or absent", _mixed_form),
    Check("create: auto", "`auto` is replaced by the chosen number", _auto),
    Check("create: wrong numbers", "a number out of range returns 400", _wrong_numbers),
    Check("create: metadata", "up to 16 pairs, keys up to 64 and values up to 512 characters", _metadata),
    Check("create: suffix", "at most 64 characters", _suffix),
    Check("create: unknown model", "returns 400", _unknown_model),
    Check("create: unknown file", "returns 400 or 404", _unknown_file),
    Check("create: completion rows", "rows with `prompt` and `completion` are accepted", _completion_rows),
    Check("create: integrations", "integrations (wandb) are accepted, or rejected with an error", _integrations),
    Check("create: reinforcement", "graders and reinforcement return 400", _reinforcement),
)

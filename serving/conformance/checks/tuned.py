"""Results of a job: checkpoints, result file, model names and deletion."""

from tunesmith.serving.conformance.bench import EPOCHS, Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.outcome import Broken, Skipped
from tunesmith.serving.conformance.pages import paged
from tunesmith.serving.conformance.shapes import expect_error, or_not_supported, require_shape

HEADER = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
KEPT = 3
"""Number of checkpoints kept per job."""


def _checkpoints(bench: Bench) -> None:
    job = bench.trained()
    checkpoints = paged(bench.client.fine_tuning.jobs.checkpoints.list(job.id))
    for checkpoint in checkpoints:
        require_shape(checkpoint)
        require(checkpoint.id.startswith("ftckpt_"), f"the id is {checkpoint.id!r}")
        require_equal(checkpoint.fine_tuning_job_id, job.id, "fine_tuning_job_id")
        require(checkpoint.metrics.train_loss is not None, f"the metrics are {checkpoint.metrics!r}")
    steps = [checkpoint.step_number for checkpoint in checkpoints]
    require(
        checkpoints and len(checkpoints) <= KEPT,
        f"{len(checkpoints)} checkpoints, expected one per epoch, of which the last three are kept",
    )
    if bench.is_own_job:
        require_equal(len(checkpoints), min(EPOCHS, KEPT), "the number of checkpoints")
    require(steps == sorted(set(steps), reverse=True), f"the steps are {steps}, expected newest first")
    pages = paged(bench.client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    require_equal(
        [checkpoint.id for checkpoint in pages],
        [checkpoint.id for checkpoint in checkpoints],
        "the checkpoints with one per page",
    )


def _checkpoint_chat(bench: Bench) -> None:
    name = _a_checkpoint(bench)
    response = bench.client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "Which colour has salt?"}], max_completion_tokens=4
    )
    require_equal(response.model, name, "model")


def _permissions(bench: Bench) -> None:
    name, project = _a_checkpoint(bench), f"proj_{bench.label}"
    permissions = bench.client.fine_tuning.checkpoints.permissions
    created = list(or_not_supported(lambda: permissions.create(name, project_ids=[project])))
    require_equal([row.project_id for row in created], [project], "the projects")
    require_shape(created[0])
    listed = [row.id for row in permissions.list(name)] if hasattr(permissions, "list") else [created[0].id]
    require(created[0].id in listed, "the permission is not in the list")
    deleted = permissions.delete(created[0].id, fine_tuned_model_checkpoint=name)
    require_shape(deleted)
    require(deleted.deleted is True, f"the response is {deleted!r}")


def _a_checkpoint(bench: Bench) -> str:
    page = bench.client.fine_tuning.jobs.checkpoints.list(bench.trained().id)
    if not page.data:
        raise Broken("no checkpoints")
    return page.data[-1].fine_tuned_model_checkpoint


def _results(bench: Bench) -> None:
    job = bench.trained()
    require(job.result_files, "no result file")
    file = bench.client.files.retrieve(job.result_files[0])
    require_shape(file)
    require_equal(file.purpose, "fine-tune-results", "purpose")
    header, *lines = bench.client.files.content(file.id).read().decode().splitlines()
    require_equal(header, HEADER, "the header")
    rows = [line.split(",") for line in lines]
    require(rows and all(len(row) == 5 for row in rows), "a line does not have five cells")
    require_equal([row[0] for row in rows], [str(step) for step in range(1, len(rows) + 1)], "the column `step`")
    for row in rows:
        require(row[1] and row[2], f"step {row[0]} has no train_loss or train_accuracy")
        for cell in row[1:]:
            float(cell or 0)
    steps = _total_steps(bench)
    require_equal(len(rows), steps, "the number of lines after the header")
    if job.validation_file:
        require(any(row[3] and row[4] for row in rows), "with a validation file, no line has a valid_loss")


def _total_steps(bench: Bench) -> int:
    for event in paged(bench.client.fine_tuning.jobs.list_events(bench.training_id, limit=50)):
        if event.type == "metrics" and isinstance(event.data, dict):
            return int(event.data["total_steps"])
    raise Broken("no event has total_steps")


def _name(bench: Bench) -> None:
    job, name = bench.trained(), bench.tuned()
    require("/" not in name, f"{name!r} contains a `/`, but names are used in paths")
    parts = name.split(":")
    require_equal(len(parts), 5, f"the number of parts of {name!r} separated by `:`")
    prefix, base, organization, suffix, unique = parts
    require_equal(prefix, "ft", "the first part")
    require(base and organization, f"{name!r} lacks the base or the organization")
    require(len(unique) == 8 and unique.isalnum(), f"the last part is {unique!r}, expected 8 characters")
    if bench.is_own_job:
        require_equal(suffix, "conformance", "the suffix")
    for checkpoint in paged(bench.client.fine_tuning.jobs.checkpoints.list(job.id)):
        checkpoint_name = checkpoint.fine_tuned_model_checkpoint
        require_equal(checkpoint_name, f"{name}:ckpt-step-{checkpoint.step_number}", "the name of a checkpoint")


def _listed(bench: Bench) -> None:
    name = bench.tuned()
    require(name in {model.id for model in bench.client.models.list()}, f"{name} is not in the list of models")
    model = bench.client.models.retrieve(name)
    require_shape(model)
    require_equal(model.id, name, "the id")


def _delete(bench: Bench) -> None:
    if not bench.is_own_job:
        raise Skipped("the job was not created by this run: its model is kept")
    name = bench.tuned()
    deleted = bench.client.models.delete(name)
    require_shape(deleted)
    require(deleted.deleted is True and deleted.id == name, f"the response is {deleted!r}")
    expect_error(lambda: bench.strict.models.retrieve(name), 404)
    messages = [{"role": "user", "content": "Hello"}]
    expect_error(lambda: bench.strict.chat.completions.create(model=name, messages=messages), 404)  # pyright: ignore
    require_equal(
        bench.retrieve(bench.training_id).status, "succeeded", "the status of the job whose model was deleted"
    )


CHECKS = (
    Check("checkpoints: object", "one per epoch, the last three are kept; `after`, `limit`", _checkpoints, True),
    Check("checkpoints: answer", "the name of a checkpoint can be used as `model`", _checkpoint_chat, True),
    Check("checkpoints: permissions", "POST, GET, DELETE .../permissions", _permissions, True),
    Check("results: file", f"CSV with header `{HEADER}`, one line per step", _results, True),
    Check("models: tuned name", "`ft:{base}:{organization}:{suffix}:{8 characters}`, separated by `:`", _name, True),
    Check("models: tuned", "GET /models and /models/{id} include a fine-tuned model", _listed, True),
)
DELETE = Check("models: delete", "DELETE /models/{ft}: deleted, then 404", _delete, True)

"""Jobs through the unmodified openai package, from the upload to the model, and invalid requests."""

import csv
import io
import json

import openai
import pytest

from tests.event_lines import event_lines
from tests.waiting import wait_for
from tunesmith.rundir.status import read_status

STEPS = 30  # 60 rows, 2 epochs, 4 rows per step


@pytest.fixture(scope="module")
def files(service, chat_rows):
    validation_rows = [json.loads(json.dumps(row).replace("Question", "Ask")) for row in chat_rows[:8]]
    return service.upload(chat_rows), service.upload(validation_rows)


@pytest.fixture(scope="module")
def done(service, files):
    """A finished job with a validation file."""
    job = service.create(
        files[0], validation_file=files[1], suffix="My model!", seed=7, metadata={"who": "a", "x": "1"}
    )
    assert (job.status, job.fine_tuned_model, job.trained_tokens, job.finished_at) == (
        "validating_files",
        None,
        None,
        None,
    )
    assert job.method.supervised.hyperparameters.n_epochs == 2
    return service.succeeded(job.id)


def test_a_successful_job(service, done):
    assert done.fine_tuned_model.startswith("ft:tiny:local:My-model:")
    assert done.error is None
    assert done.seed == 7
    assert done.finished_at >= done.created_at
    assert done.hyperparameters.model_dump(exclude_none=True) == {
        "n_epochs": 2,
        "batch_size": 4,
        "learning_rate_multiplier": 10.0,
    }
    rows = [json.loads(line) for line in (service.run(done.id).receipts / "train.jsonl").read_text().splitlines()]
    assert done.trained_tokens == 2 * sum(row["tokens"] for row in rows)
    assert done.fine_tuned_model in [model.id for model in service.client.models.list()]


def test_events_are_paginated(service, done):
    events = service.events(done.id, limit=7)  # about six pages
    assert len({event.id for event in events}) == len(events) == STEPS + 10
    messages = [event.message for event in events]
    for earlier, later in zip(
        order := [
            f"Created fine-tuning job: {done.id}",
            f"Validating training file: {done.training_file}",
            "Files validated, moving job to queued state",
            "Fine-tuning job started",
            f"New fine-tuned model created: {done.fine_tuned_model}",
            "The job has successfully completed",
        ],
        order[1:],
        strict=False,
    ):
        assert messages.index(earlier) < messages.index(later)
    metrics = [event for event in events if event.type == "metrics"]
    assert [event.data["step"] for event in metrics] == list(range(1, STEPS + 1))
    assert all(event.data["total_steps"] == STEPS for event in metrics)
    losses = {event["step"]: event["loss"] for event in event_lines(service.run(done.id).events, "step")}
    assert {event.data["step"]: event.data["train_loss"] for event in metrics} == losses
    assert [event.data["step"] for event in metrics if "full_valid_loss" in event.data] == [15, 30]
    assert any("60 examples (60 kept)" in message for message in messages)
    assert [event.created_at for event in events] == sorted(event.created_at for event in events)
    # A page after a given event never changes.
    page = service.client.fine_tuning.jobs.list_events(done.id, after=events[20].id, limit=20)
    assert [event.id for event in page.data] == [event.id for event in events[:20][::-1]]
    assert not page.has_more


def test_checkpoints_are_adapters_that_peft_can_load(service, done, tiny_llama):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    checkpoints = list(service.client.fine_tuning.jobs.checkpoints.list(done.id, limit=1))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [30, 15]
    assert checkpoints[0].fine_tuned_model_checkpoint == f"{done.fine_tuned_model}:ckpt-step-30"
    assert checkpoints[0].metrics.full_valid_loss < checkpoints[1].metrics.full_valid_loss
    assert checkpoints[0].fine_tuning_job_id == done.id
    logits = []
    for directory in ("export", "checkpoints/step-30", "checkpoints/step-15"):
        place = service.run(done.id).root if directory == "export" else service.settings.home / "jobs" / done.id
        base = AutoModelForCausalLM.from_pretrained(tiny_llama)
        model = PeftModel.from_pretrained(base, str(place / directory)).eval()
        with torch.no_grad():
            logits.append(model(torch.tensor([[1, 50, 60, 70]])).logits)
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=1e-4)


def test_result_file(service, done):
    (file_id,) = done.result_files
    file = service.client.files.retrieve(file_id)
    assert file.purpose == "fine-tune-results"
    text = service.client.files.content(file_id).text
    assert len(text) == file.bytes
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if row["valid_loss"]] == ["15", "30"]


def test_jobs_are_listed_by_metadata(service, done, files):
    jobs = service.client.fine_tuning.jobs
    assert done.id in [job.id for job in jobs.list(metadata={"who": "a"})]
    assert done.id in [job.id for job in jobs.list(metadata={"who": "a", "x": "1"}, limit=1)]
    assert list(jobs.list(metadata={"who": "b"})) == []
    assert done.id not in [job.id for job in jobs.list(extra_query={"metadata": "null"})]


def test_training_continues_from_a_tuned_model(service, done, files):
    """The evaluation before training equals the last one of the earlier model, bit for bit."""
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}}
    job = service.create(files[0], model=done.fine_tuned_model, validation_file=files[1], seed=8, method=method)
    job = service.succeeded(job.id)
    assert job.model == done.fine_tuned_model
    last = list(event_lines(service.run(done.id).events, "evaluation"))[-1]
    first = next(event_lines(service.run(job.id).events, "evaluation"))
    assert (first["when"], first["loss"]) == ("before", last["loss"])
    assert job.fine_tuned_model.startswith("ft:tiny:local::")


def test_messages_with_weight_0_are_not_trained(service, chat_rows):
    """Two files that differ only in the text of such messages give the same model, bit for bit."""
    exports = []
    for text in ("qzx", "xzq"):
        rows = [
            {
                "messages": [
                    *row["messages"],
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": text, "weight": 0},
                ]
            }
            for row in chat_rows[:12]
        ]
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}}
        job = service.succeeded(service.create(service.upload(rows), seed=3, method=method).id)
        assert any("12 masked" in event.message for event in service.events(job.id))
        exports.append((service.run(job.id).export / "adapter_model.safetensors").read_bytes())
    assert exports[0] == exports[1]


def test_preference_training(service, chat_rows):
    rows = [
        {
            "input": {"messages": row["messages"][:1]},
            "preferred_output": row["messages"][1:],
            "non_preferred_output": [{"role": "assistant", "content": "I do not know."}],
        }
        for row in chat_rows[:12]
    ]
    hyperparameters = {"n_epochs": 1, "batch_size": 4, "beta": 0.25}
    job = service.create(service.upload(rows), method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}})
    job = service.succeeded(job.id)
    assert job.method.dpo.hyperparameters.beta == 0.25
    assert job.method.dpo.hyperparameters.learning_rate_multiplier == 1.0
    plan = json.loads(service.run(job.id).plan.read_text())
    assert plan["recipe"]["preference"] == {"loss": "dpo", "beta": 0.25}


@pytest.mark.parametrize(
    ("rows", "code", "text"),
    [
        (lambda rows: rows[:9], "invalid_n_examples", "9 example(s)"),
        (lambda rows: [*rows[:10], {"messages": rows[0]["messages"][:1]}], "invalid_training_file", "Example 11"),
        (lambda rows: [{"input": {"messages": rows[0]["messages"][:1]}}] * 10, "invalid_training_file", "preference"),
    ],
)
def test_an_invalid_training_file_fails_the_job(service, chat_rows, rows, code, text):
    job = service.finished(service.create(service.upload(rows(chat_rows))).id)
    assert (job.status, job.error.code, job.error.param) == ("failed", code, "training_file")
    assert text in job.error.message
    assert job.fine_tuned_model is None
    last = service.events(job.id)[-1]
    assert (last.level, job.error.message in last.message) == ("error", True)


def test_an_invalid_validation_file_fails_the_job(service, files, chat_rows):
    broken = service.upload([{"messages": [{"role": "user", "content": "q"}]}])
    job = service.finished(service.create(files[0], validation_file=broken).id)
    assert (job.error.code, job.error.param) == ("invalid_validation_file", "validation_file")


def test_a_validation_file_of_training_rows_is_a_warning(service, files, chat_rows):
    """The hosted API accepts one; the job trains without validation and reports no validation loss."""
    job = service.succeeded(service.create(files[0], validation_file=service.upload(chat_rows[:5])).id)
    warnings = [event.message for event in service.events(job.id) if event.level == "warn"]
    message = "Validation file: all examples are in the training file as well; the job runs without validation"
    assert warnings.count(message) == 1, warnings
    checkpoints = service.client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoints
    assert all(checkpoint.metrics.valid_loss is None for checkpoint in checkpoints)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": "no-such-model"}, "model"),
        ({"model": "ft:tiny:local::12345678"}, "model"),
        ({"training_file": "file-000000000000000000000000"}, "training_file"),
        ({"validation_file": "file-000000000000000000000000"}, "validation_file"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, "metadata"),
        ({"metadata": {"k": "x" * 513}}, "metadata"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, "method.type"),
        ({"hyperparameters": {"n_epochs": 1000}, "method": openai.omit}, "hyperparameters.n_epochs"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": ""}}]}, "integrations[0].wandb.project"),
        ({"extra_body": {"epochs": 1}}, "epochs"),
    ],
)
def test_invalid_requests_are_rejected(service, files, changes, param):
    with pytest.raises(openai.BadRequestError) as raised:
        service.create(files[0], **changes)
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"
    assert raised.value.body["message"]


def test_an_unknown_job_is_a_404(service, done):
    jobs = service.client.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError) as raised:
            call("ftjob-000000000000000000000000")
        assert raised.value.code == "fine_tune_not_found"
    with pytest.raises(openai.BadRequestError):
        jobs.list_events(done.id, after="ftevent-000000000000000000000000")


def test_an_illegal_state_change_is_a_400(service, done):
    jobs = service.client.fine_tuning.jobs
    for call in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError, match="succeeded"):
            call(done.id)


def test_graders_are_not_supported(service):
    grader = {"type": "string_check", "name": "g", "input": "a", "operation": "eq", "reference": "a"}
    with pytest.raises(openai.BadRequestError, match="not supported"):
        service.client.fine_tuning.alpha.graders.validate(grader=grader)


def test_one_idempotency_key_creates_one_job(service, chat_rows):
    file = service.upload(chat_rows[:9])
    headers = {"Idempotency-Key": "once-and-only-once"}
    first, second = (service.create(file, extra_headers=headers) for _ in range(2))
    other = service.create(file, extra_headers={"Idempotency-Key": "another"})
    assert first.id == second.id != other.id
    messages = [event.message for event in service.events(first.id)]
    assert messages.count(f"Created fine-tuning job: {first.id}") == 1


def test_checkpoint_permissions(service, done):
    permissions = service.client.fine_tuning.checkpoints.permissions
    name = f"{done.fine_tuned_model}:ckpt-step-30"
    created = permissions.create(name, project_ids=["proj_a", "proj_b"]).data
    assert [permission.project_id for permission in created] == ["proj_a", "proj_b"]
    assert {p.project_id for p in permissions.list(name, limit=1)} == {"proj_a", "proj_b"}
    assert [p.id for p in permissions.list(name, project_id="proj_b")] == [created[1].id]
    assert permissions.delete(created[0].id, fine_tuned_model_checkpoint=name).deleted
    assert [p.id for p in permissions.list(name)] == [created[1].id]
    with pytest.raises(openai.NotFoundError):
        permissions.list("ft:tiny:local::12345678:ckpt-step-1")


def test_a_job_that_learns_nothing_fails_with_the_code_of_its_verdict(service, files):
    hyperparameters = {"learning_rate_multiplier": 1e-9, "n_epochs": 1}
    job = service.create(files[0], method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}})
    wait_for(lambda: service.status(job.id) in ("succeeded", "failed"))
    failed = service.client.fine_tuning.jobs.retrieve(job.id)
    assert (failed.status, failed.error.code, failed.fine_tuned_model) == ("failed", "learning_rate_too_low", None)
    assert failed.error.message


def test_pause_resume_and_cancel(service, many_chat_rows):
    """A paused job saves and stops, a resumed one continues from there, a cancelled one publishes nothing."""
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 1}}}
    jobs, job = service.client.fine_tuning.jobs, service.create(service.upload(many_chat_rows), method=method)
    run = service.run(job.id)
    wait_for(lambda: (status := read_status(run.status)) and status.step > 5)
    wait_for(lambda: service.status(job.id) == "running")
    wait_for(lambda: jobs.retrieve(job.id).estimated_finish)
    assert jobs.pause(job.id).status == "pausing"
    wait_for(lambda: service.status(job.id) == "paused")
    paused_at = read_status(run.status)
    assert (paused_at.phase, paused_at.step > 5) == ("preempted", True)
    with pytest.raises(openai.BadRequestError):
        jobs.pause(job.id)
    assert jobs.resume(job.id).status == "queued"
    wait_for(lambda: read_status(run.status).step > paused_at.step)
    assert jobs.cancel(job.id).status == "cancelled"
    wait_for(lambda: service.store.jobs.get(job.id).settled)
    assert read_status(run.status).phase == "preempted"
    events = service.events(job.id)
    assert events[-1].message == "The job was cancelled" or events[-1].type == "metrics"
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= paused_at.step
    assert jobs.retrieve(job.id).fine_tuned_model is None

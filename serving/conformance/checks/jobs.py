"""Jobs: lists, statuses, and invalid status transitions."""

from tunesmith.serving.conformance.bench import FINAL, Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.outcome import Broken
from tunesmith.serving.conformance.pages import paged
from tunesmith.serving.conformance.rows import chat_rows, preference_rows
from tunesmith.serving.conformance.shapes import expect_error, or_not_supported, require_shape


def _pages(bench: Bench) -> None:
    file = bench.file(chat_rows(12)).id
    labels = {"pages": bench.label}
    ids = [bench.create(training_file=file, metadata=labels).id for _ in range(3)]
    for id in ids:
        bench.client.fine_tuning.jobs.cancel(id)
    jobs = bench.client.fine_tuning.jobs
    metadata = {"pages": bench.label}
    listed = [job.id for job in paged(jobs.list(limit=1, metadata=metadata))]
    require_equal(listed, ids[::-1], "the list of jobs, newest first, one job per page")
    page = jobs.list(limit=2, metadata=metadata)
    require_equal((len(page.data), page.has_more), (2, True), "number of jobs and has_more of the first of two pages")
    page = jobs.list(limit=2, metadata=metadata, after=ids[1])
    require_equal(([job.id for job in page.data], page.has_more), ([ids[0]], False), "the last page")
    for job in jobs.list(limit=5).data:
        require_shape(job)


def _metadata_null(bench: Bench) -> None:
    """Jobs with metadata are not in the list with metadata=null."""
    bench.client.fine_tuning.jobs.cancel(bench.create_from_rows(chat_rows(12)).id)
    page = bench.client.fine_tuning.jobs.list(extra_query={"metadata": "null"}, limit=50)
    labelled = [job.id for job in page.data if job.metadata]
    require(not labelled, f"metadata=null lists {labelled[:1]}, which has metadata")


def _once(bench: Bench) -> None:
    file, labels = bench.file(chat_rows(12)).id, {"once": bench.label}

    def create(key: str) -> str:
        headers = {"Idempotency-Key": f"{key}-{bench.label}"}
        return bench.create(training_file=file, metadata=labels, extra_headers=headers).id

    first, second = create("one"), create("one")
    listed = [job.id for job in paged(bench.client.fine_tuning.jobs.list(metadata=labels))]
    third = create("other")
    for id in {first, second, third}:
        bench.client.fine_tuning.jobs.cancel(id)
    require_equal(second, first, "the job of the second request with the same Idempotency-Key")
    require_equal(listed, [first], "the jobs created by two requests with the same Idempotency-Key")
    require(third != first, "another Idempotency-Key returned the same job")


def _cancel(bench: Bench) -> None:
    job = bench.create_from_rows(chat_rows(12))
    cancelled = bench.client.fine_tuning.jobs.cancel(job.id)
    require_shape(cancelled)
    require_equal((cancelled.id, cancelled.status), (job.id, "cancelled"), "the response")
    later = bench.wait_until_finished(job.id)
    require(later.status == "cancelled" and later.finished_at is not None, f"later, the status is {later.status}")


def _final_stays(bench: Bench) -> None:
    """The client retries on 409, so an invalid transition must return 400."""
    jobs = bench.strict.fine_tuning.jobs
    job = bench.create_from_rows(chat_rows(12))
    bench.client.fine_tuning.jobs.cancel(job.id)
    for transition in (jobs.cancel, jobs.pause, jobs.resume):
        expect_error(lambda t=transition: t(job.id))
    require_equal(bench.retrieve(job.id).status, "cancelled", "the status after rejected transitions")


def _not_running(bench: Bench) -> None:
    failed = bench.wait_until_finished(bench.create_from_rows(chat_rows(9)).id)
    require_equal(failed.status, "failed", "the status of a job with nine examples")
    for transition in (bench.strict.fine_tuning.jobs.pause, bench.strict.fine_tuning.jobs.resume):
        expect_error(lambda t=transition: t(failed.id))
    expect_error(lambda: bench.strict.fine_tuning.jobs.cancel(failed.id))


def _pause(bench: Bench) -> None:
    """From running through pausing, paused and queued to cancelled."""
    jobs = bench.client.fine_tuning.jobs
    job = bench.create_from_rows(chat_rows(40), hyperparameters={"n_epochs": 50, "batch_size": 1})
    running = bench.wait(job.id, lambda now: now.status in ("running", *FINAL), "a running job")
    require_equal(running.status, "running", "the status")
    require(
        running.trained_tokens is None and running.fine_tuned_model is None,
        "a running job has trained_tokens or fine_tuned_model",
    )
    expect_error(lambda: bench.strict.fine_tuning.jobs.resume(job.id))
    pausing = or_not_supported(lambda: bench.strict.fine_tuning.jobs.pause(job.id))
    require_shape(pausing)
    require(pausing.status in ("pausing", "paused"), f"after pause, the status is {pausing.status}")
    paused = bench.wait(job.id, lambda now: now.status not in ("running", "pausing"), "a paused job")
    require_equal(paused.status, "paused", "the status")
    expect_error(lambda: bench.strict.fine_tuning.jobs.pause(job.id))
    resumed = jobs.resume(job.id)
    require(resumed.status in ("queued", "running"), f"after resume, the status is {resumed.status}")
    expect_error(lambda: bench.strict.fine_tuning.jobs.resume(job.id))
    require_equal(jobs.cancel(job.id).status, "cancelled", "the status of a cancelled job")


def _succeeded(bench: Bench) -> None:
    job = bench.trained()
    sent = require_shape(job)
    require(job.trained_tokens and job.trained_tokens > 0, f"trained_tokens is {job.trained_tokens!r}")
    require(job.finished_at and job.finished_at >= job.created_at, f"finished_at is {job.finished_at!r}")
    require(sent.get("error") is None, f"error is {sent.get('error')!r}")
    require(job.result_files, "no result file")
    for transition in (bench.strict.fine_tuning.jobs.cancel, bench.strict.fine_tuning.jobs.pause):
        expect_error(lambda t=transition: t(job.id))


def _dpo(bench: Bench) -> None:
    hyperparameters = {"n_epochs": 1, "batch_size": 4, "beta": 0.2, "learning_rate_multiplier": "auto"}
    method = {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}
    file = bench.file(preference_rows(16)).id
    job = or_not_supported(lambda: bench.create(bench.strict, training_file=file, method=method))
    done = bench.wait_until_finished(job.id)
    require_equal(done.status, "succeeded", f"the status ({done.error})")
    reported = done.method and done.method.dpo and done.method.dpo.hyperparameters
    if reported is None:
        raise Broken(f"method is {done.method!r}")
    require_equal((reported.beta, reported.n_epochs, reported.batch_size), (0.2, 1, 4), "beta, n_epochs, batch_size")
    require(isinstance(reported.learning_rate_multiplier, (int, float)), f"`auto` was returned as {reported!r}")


def _stacking(bench: Bench) -> None:
    name = bench.tuned()
    job = bench.create_from_rows(chat_rows(12, first=200), model=name, hyperparameters={"n_epochs": 1})
    require_equal(job.model, name, "model")
    now = bench.wait(
        job.id, lambda now: now.status in ("running", *FINAL), "a job that continues from a fine-tuned model"
    )
    if now.status == "running":
        bench.client.fine_tuning.jobs.cancel(job.id)
    require(now.status != "failed", f"the job failed: {now.error}")


CHECKS = (
    Check("jobs: pages", "GET /fine_tuning/jobs: `after`, `limit`, `metadata[k]=v`, newest first", _pages),
    Check("jobs: metadata=null", "metadata=null lists jobs without metadata", _metadata_null),
    Check("jobs: idempotency", "two create requests with the same `Idempotency-Key` create one job", _once),
    Check("jobs: cancel", "cancel from any non-final status returns the job", _cancel),
    Check("jobs: final states", "cancel, pause and resume of a cancelled job return 400", _final_stays),
    Check("jobs: failed", "cancel, pause and resume of a failed job return 400", _not_running),
    Check("jobs: pause and resume", "pause from running, resume from paused; otherwise 400", _pause, True),
    Check("jobs: succeeded", "trained_tokens, finished_at, result_files, no error", _succeeded, True),
    Check("jobs: dpo", "dpo with `beta` and preference rows", _dpo, True),
    Check("jobs: stacking", "`model` may be a fine-tuned model (`ft:`)", _stacking, True),
)

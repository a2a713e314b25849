"""Fine-tuning jobs: create, list, pause, resume and cancel. The supervisor processes them."""

import os
import time
from typing import Annotated, Any, NoReturn

from fastapi import APIRouter, Body, Query, Request
from sqlalchemy.orm import Session

from tunesmith.serving.errors import ApiError
from tunesmith.serving.jobs.creation import NewJob, read_labels, read_new_job, require_storable
from tunesmith.serving.jobs.integrations import require_available
from tunesmith.serving.jobs.records import add_events
from tunesmith.serving.jobs.relay import ApiEvent
from tunesmith.serving.names import make_id, make_tuned_name
from tunesmith.serving.objects.fine_tuning import (
    FineTuningJob,
    JobCheckpoint,
    JobEvent,
    checkpoint_object,
    event_object,
    job_object,
)
from tunesmith.serving.objects.list_page import ListPage
from tunesmith.serving.paging import cursor, limit_of, page
from tunesmith.serving.routes.context import Caller, CallerDep, KnownQuery, Server, ServerDep, or_404
from tunesmith.serving.routes.object_route import ObjectRoute
from tunesmith.serving.store.files import lock_file
from tunesmith.serving.store.tables import Checkpoint, Job

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"], route_class=ObjectRoute)
LARGEST_PAGE = 100
ACTIVE = ("validating_files", "queued", "running", "pausing", "paused")

Limit = Annotated[int, Query()]


@router.post("/jobs")
def create_job(server: ServerDep, caller: CallerDep, body: Annotated[Any, Body()] = None) -> FineTuningJob:
    new = read_new_job(body)
    require_available(new.integrations, os.environ)
    base, stacked_on = _base_of(server, caller, new.model)
    files = {"training_file": new.training_file, "validation_file": new.validation_file}
    with server.store.begin() as session:
        for file_id in sorted({id for id in files.values() if id is not None}):
            lock_file(session, file_id)
        for param, file_id in files.items():
            _require_file(server, caller, param, file_id, session)
        job, is_new = server.store.jobs.create(_row(server, caller, new, base, stacked_on), session)
        if is_new:
            event = ApiEvent("created", time.time(), f"Created fine-tuning job: {job.id}")
            add_events(server.store, job.id, [event], session)
    return job_object(job)


@router.get("/jobs", dependencies=[KnownQuery])
def list_jobs(
    request: Request, server: ServerDep, caller: CallerDep, after: str | None = None, limit: Limit = 20
) -> ListPage[FineTuningJob]:
    """`metadata[k]=v` selects jobs with all of these pairs, `metadata=null` jobs without metadata."""
    pairs = [(name, value) for name, value in request.query_params.multi_items() if name.startswith("metadata")]
    labels = None if pairs == [("metadata", "null")] else read_labels(pairs)
    start = cursor(after, lambda id: server.store.jobs.get(_text(id, "after"), caller.organization))
    listed = server.store.jobs.list(
        caller.organization, start, limit_of(limit, LARGEST_PAGE), labels=labels, unlabelled=labels is None
    )
    return page(listed, job_object)


@router.get("/jobs/{job_id}")
def get_job(job_id: str, server: ServerDep, caller: CallerDep) -> FineTuningJob:
    return job_object(_job(server, caller, job_id))


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, server: ServerDep, caller: CallerDep) -> FineTuningJob:
    job = _job(server, caller, job_id)
    event = ApiEvent("cancelled", time.time(), "The job was cancelled")
    return _moved(server, job, ACTIVE, "cancelled", event, finished_at=int(time.time()), estimated_finish=None)


@router.post("/jobs/{job_id}/pause")
def pause_job(job_id: str, server: ServerDep, caller: CallerDep) -> FineTuningJob:
    job = _job(server, caller, job_id)
    event = ApiEvent(f"pausing:{time.time_ns()}", time.time(), "Fine-tuning job is being paused")
    return _moved(server, job, ("running",), "pausing", event)


@router.post("/jobs/{job_id}/resume")
def resume_job(job_id: str, server: ServerDep, caller: CallerDep) -> FineTuningJob:
    """Queue a paused job again; like a new job, it waits for a free slot."""
    job = _job(server, caller, job_id)
    event = ApiEvent(f"resumed:{time.time_ns()}", time.time(), "Fine-tuning job was resumed, moving it to queued state")
    return _moved(server, job, ("paused",), "queued", event)


@router.get("/jobs/{job_id}/events", dependencies=[KnownQuery])
def list_events(
    job_id: str, server: ServerDep, caller: CallerDep, after: str | None = None, limit: Limit = 20
) -> ListPage[JobEvent]:
    """Events, newest first. A page after a given event is stable: new events do not shift it."""
    job = _job(server, caller, job_id)
    start = cursor(after, lambda id: server.store.events.get(_text(id, "after"), job.id))
    return page(server.store.events.list(job.id, start, limit_of(limit, LARGEST_PAGE)), event_object)


@router.get("/jobs/{job_id}/checkpoints", dependencies=[KnownQuery])
def list_checkpoints(
    job_id: str, server: ServerDep, caller: CallerDep, after: str | None = None, limit: Limit = 10
) -> ListPage[JobCheckpoint]:
    job = _job(server, caller, job_id)

    def of_this_job(id: str) -> Checkpoint | None:
        row = server.store.checkpoints.get(_text(id, "after"))
        return row if row is not None and row.job_id == job.id else None

    listed = server.store.checkpoints.list(job.id, cursor(after, of_this_job), limit_of(limit, LARGEST_PAGE))
    return page(listed, checkpoint_object)


@router.post("/alpha/graders/{action}")
def use_grader(action: str) -> NoReturn:
    raise ApiError(
        "Graders and reinforcement fine-tuning are not supported; supported methods: supervised and dpo.",
        code="unsupported_method",
    )


def _job(server: Server, caller: Caller, job_id: str) -> Job:
    job = server.store.jobs.get(job_id, caller.organization) if "\0" not in job_id else None
    message = f"Could not find fine tune: {job_id[:80]}"
    return or_404(job, message, code="fine_tune_not_found", param="fine_tuning_job_id")


def _moved(server: Server, job: Job, states: tuple[str, ...], to: str, event: ApiEvent, **fields: Any) -> FineTuningJob:
    """Move a job to a new state. Raises ApiError (400) if its current state does not allow that."""
    with server.store.begin() as session:
        moved = server.store.jobs.transition(job.id, states, to, session=session, **fields)
        if moved is not None:
            add_events(server.store, job.id, [event], session)
            return job_object(moved)
    now = server.store.jobs.get(job.id) or job
    verb = {"cancelled": "cancelled", "pausing": "paused", "queued": "resumed"}[to]
    allowed = "an unfinished job" if to == "cancelled" else f"a job that is {' or '.join(states)}"
    raise ApiError(
        f"The job {job.id} is {now.status}: only {allowed} can be {verb}.",
        code="fine_tune_not_cancellable" if to == "cancelled" else "invalid_state",
    )


def _base_of(server: Server, caller: Caller, model: str) -> tuple[str, str | None]:
    """(name of the base, tuned model to continue from or None). Raises ApiError (400)."""
    if model in server.settings.bases:
        return model, None
    tuned = server.store.models.get(model, caller.organization) if model.startswith("ft:") else None
    if tuned is not None and tuned.base in server.settings.bases:
        return tuned.base, tuned.name
    known = ", ".join(server.settings.bases) or "none"
    raise ApiError(
        f"The model {model[:200]!r} cannot be fine-tuned: it does not exist or you do not have access to it. Base "
        f"models: {known}.",
        param="model",
        code="model_not_found",
    )


def _require_file(server: Server, caller: Caller, param: str, file_id: str | None, session: Session) -> None:
    if file_id is None:
        return
    file = server.store.files.get(file_id, caller.organization, session=session)
    if file is None:
        raise ApiError(f"The file {file_id[:80]!r} does not exist.", param=param, code="file_not_found")
    if file.purpose != "fine-tune":
        raise ApiError(
            f"The file {file_id} has the purpose {file.purpose!r}; a {param.replace('_', ' ')} needs 'fine-tune'.",
            param=param,
            code="invalid_file_purpose",
        )


def _row(server: Server, caller: Caller, new: NewJob, base: str, stacked_on: str | None) -> Job:
    return Job(
        id=make_id("ftjob-"),
        organization=caller.organization,
        created_at=int(time.time()),
        model=new.model,
        base=base,
        stacked_on=stacked_on,
        suffix=new.suffix or None,
        seed=new.seed,
        method={"type": new.method, new.method: {"hyperparameters": new.hyperparameters}},
        hyperparameters=new.hyperparameters,
        training_file=new.training_file,
        validation_file=new.validation_file,
        labels=new.metadata,
        integrations=new.integrations,
        status="validating_files",
        result_files=[],
        idempotency=caller.idempotency,
        settled=False,
        details={"name": make_tuned_name(base, caller.organization, new.suffix)},
    )


def _text(value: str, param: str) -> str:
    require_storable(value, param)
    return value

"""The supervisor's writes to the store: events, checkpoints, models, final states. All of them are idempotent."""

import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from tunesmith.serving.jobs.relay import ApiEvent, SavedCheckpoint
from tunesmith.serving.names import checkpoint_name, make_id
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Checkpoint, Event, Job, Model

BATCH = 500
"""Events per transaction: databases limit the number of values in a statement."""


def add_events(store: Store, job_id: str, events: Iterable[ApiEvent], session: Session | None = None) -> None:
    rows = [
        Event(source=e.key, message=e.message, level=e.level, type=e.type, data=e.data, created_at=int(e.created_at))
        for e in events
    ]
    for start in range(0, len(rows), BATCH):
        store.events.append_all(job_id, rows[start : start + BATCH], session)


def move(
    store: Store, job_id: str, states: Sequence[str], to: str, events: Iterable[ApiEvent] = (), **fields: Any
) -> Job | None:
    """Change a job's state and add events, in one transaction. Returns None, without any change, if the job was in none
    of `states`."""
    with store.begin() as session:
        job = store.jobs.transition(job_id, states, to, session=session, **fields)
        if job is not None:
            add_events(store, job_id, events, session)
    return job


def put_checkpoint(store: Store, job: Job, name: str, saved: SavedCheckpoint, adapter: Path) -> None:
    """Add a checkpoint, the model under which it is served, and the event, in one transaction."""
    event, created = checkpoint_event(name, saved), int(saved.created_at)
    name, step = checkpoint_name(name, saved.step), saved.step
    with store.begin() as session:
        row = Checkpoint(id=make_id("ftckpt_"), job_id=job.id, created_at=created, step_number=step, name=name)
        row.metrics = {"step": step, **saved.metrics}
        store.checkpoints.add(row, session)
        store.models.add(_model(job, name, adapter, created), session)
        add_events(store, job.id, [event], session)


def checkpoint_event(name: str, saved: SavedCheckpoint) -> ApiEvent:
    """name: of the model."""
    step = saved.step
    message = f"Checkpoint created at step {step}: {checkpoint_name(name, step)}"
    return ApiEvent(f"checkpoint:{step}", saved.created_at, message)


def drop_checkpoints(store: Store, job_id: str, kept: Sequence[int], adapters: Path) -> None:
    """Delete all checkpoints but those of the steps `kept`: rows first, then files."""
    for row in store.checkpoints.list(job_id, limit=1000).rows:
        if row.step_number not in kept:
            with store.begin() as session:
                store.models.delete(row.name, session)
                store.checkpoints.delete(row.id, session)
    for path in adapters.glob("step-*"):
        if path.name not in {f"step-{step}" for step in kept}:
            shutil.rmtree(path, ignore_errors=True)


def publish(store: Store, job: Job, name: str, adapter: Path, result_file: str, trained_tokens: int) -> bool:
    """Complete a job: its state, model and events, in one transaction. Returns False, without publishing a model, if
    the job was cancelled meanwhile."""
    now = time.time()
    events = [
        ApiEvent("model", now, f"New fine-tuned model created: {name}"),
        ApiEvent("succeeded", now, "The job has successfully completed"),
    ]
    with store.begin() as session:
        done = store.jobs.transition(
            job.id,
            ("running", "pausing"),
            "succeeded",
            session=session,
            fine_tuned_model=name,
            trained_tokens=trained_tokens,
            result_files=[result_file],
            finished_at=int(now),
            estimated_finish=None,
        )
        if done is None:
            return False
        store.models.add(_model(job, name, adapter, int(now)), session)
        add_events(store, job.id, events, session)
    return True


def _model(job: Job, name: str, adapter: Path, created_at: int) -> Model:
    return Model(
        name=name,
        organization=job.organization,
        created_at=created_at,
        base=job.base,
        adapter=str(adapter),
        parent=job.stacked_on or job.base,
        job_id=job.id,
    )

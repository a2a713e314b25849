"""Objects of the hosted API as rows of the store. They keep their ids, so that code that knows them works on.

A model that was tuned there cannot be had: its name stands in the store as history, over a base that no server has, so
that whoever asks for it is told what became of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.serving.jobs.creation import MAX_KEY, MAX_PAIRS, MAX_VALUE
from tunesmith.serving.names import id_of, is_id
from tunesmith.serving.store.jobs import FINAL
from tunesmith.serving.store.tables import Checkpoint, Event, Job, Model

MARK = "imported_from"
"""The metadata key that tells where a job came from; `jobs.list(metadata={...})` finds by it."""
LEVELS, TYPES = ("info", "warn", "error"), ("message", "metrics")
Thing = dict[str, Any]


def kept_id(prefix: str, remote: str) -> str:
    """The id itself where it has the form of an id, else one that is made of it: ids become names of files."""
    if remote.startswith(prefix) and is_id(remote):
        return remote
    return id_of(prefix, remote)


def file_id(remote: object) -> str | None:
    return kept_id("file-", remote) if isinstance(remote, str) and remote else None


def job_row(job: Thing, organization: str, host: str) -> Job:
    """A job at its end, as history: nobody has anything to do about it. Raises ValueError for what is no job."""
    method = job.get("method")
    training = file_id(job.get("training_file"))
    if job.get("status") not in FINAL or not isinstance(job.get("model"), str) or training is None:
        raise ValueError("it is no job at its end")
    error = job.get("error")
    numbers = _numbers(job)
    return Job(
        id=kept_id("ftjob-", str(job["id"])),
        organization=organization,
        created_at=_whole(job.get("created_at")) or 0,
        model=job["model"],
        base=job["model"],
        stacked_on=None,
        suffix=job.get("user_provided_suffix"),
        seed=_whole(job.get("seed")) or 0,
        method=method if isinstance(method, dict) else _supervised(numbers),
        hyperparameters=numbers,
        training_file=training,
        validation_file=file_id(job.get("validation_file")),
        labels=_labels(job.get("metadata"), host),
        integrations=job.get("integrations") or None,
        status=job["status"],
        fine_tuned_model=job.get("fine_tuned_model"),
        trained_tokens=_whole(job.get("trained_tokens")),
        error=error if isinstance(error, dict) and error.get("code") else None,
        finished_at=_whole(job.get("finished_at")),
        estimated_finish=None,
        result_files=[id for id in map(file_id, job.get("result_files") or []) if id],
        run_dir=None,
        idempotency=None,
        settled=True,
        details={MARK: host, "remote_id": job["id"]},
    )


def event_rows(events: Sequence[Thing], job: Job, host: str, now: float) -> list[Event]:
    """The oldest first, and behind them one that says where the job came from. events: the newest first."""
    rows = [
        Event(
            source=f"imported:{event['id']}"[:200],
            created_at=_whole(event.get("created_at")) or job.created_at,
            level=event.get("level") if event.get("level") in LEVELS else "info",
            type=event.get("type") if event.get("type") in TYPES else "message",
            message=str(event.get("message") or ""),
            data=event.get("data") if isinstance(event.get("data"), dict) else {},
        )
        for event in reversed(events)
    ]
    told = f"Imported from {host} as history"
    if job.fine_tuned_model:
        told += f": the weights of {job.fine_tuned_model} stay there, and this server cannot answer with them"
    rows.append(Event(source="imported", created_at=int(now), level="info", type="message", message=told, data={}))
    return rows


def checkpoint_row(checkpoint: Thing, job: Job) -> Checkpoint:
    """Raises KeyError or ValueError for what is no checkpoint."""
    row = Checkpoint(id=kept_id("ftckpt_", str(checkpoint["id"])), job_id=job.id)
    row.created_at = _whole(checkpoint.get("created_at")) or job.created_at
    row.step_number, row.name = int(checkpoint["step_number"]), str(checkpoint["fine_tuned_model_checkpoint"])
    metrics = checkpoint.get("metrics")
    row.metrics = {key: value for key, value in metrics.items() if value is not None} if metrics else {}
    return row


def model_row(name: str, job: Job, host: str, home: Path) -> Model:
    """A name without weights. base: no server's base has spaces in its name. adapter: where nothing ever lies."""
    origin = f"{job.model} at {host} (imported as history: its weights stay there)"
    nowhere = home / "imported" / id_of("", name)
    created = job.finished_at or job.created_at
    row = Model(name=name, organization=job.organization, created_at=created, base=origin, adapter=str(nowhere))
    row.parent, row.job_id = origin, job.id
    return row


def _labels(metadata: object, host: str) -> dict[str, Any] | None:
    """The job's own, with the mark where there is room for it."""
    labels = {
        str(key)[:MAX_KEY]: str(value)[:MAX_VALUE]
        for key, value in (metadata.items() if isinstance(metadata, dict) else ())
    }
    if len(labels) < MAX_PAIRS:
        labels[MARK] = host
    return labels


def _numbers(job: Thing) -> Thing:
    method, numbers = job.get("method"), job.get("hyperparameters")
    if not numbers and isinstance(method, dict):
        inner = method.get(str(method.get("type")))
        numbers = inner.get("hyperparameters") if isinstance(inner, dict) else None
    return numbers if isinstance(numbers, dict) else {}


def _supervised(numbers: Thing) -> Thing:
    return {"type": "supervised", "supervised": {"hyperparameters": numbers}}


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

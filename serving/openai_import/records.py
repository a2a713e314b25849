"""Conversion of objects of the hosted API to rows of the store. Ids are kept, so that code that uses them still works.

The weights of hosted fine-tuned models are not available. Their names are stored as history with a nonexistent base, so
that a request for one returns an explanatory error.
"""

from collections.abc import Sequence
from pathlib import Path

from tunesmith.serving.jobs.creation import MAX_KEY, MAX_PAIRS, MAX_VALUE
from tunesmith.serving.names import id_of, is_id
from tunesmith.serving.openai_import.hosted_api import RemoteObject
from tunesmith.serving.store.jobs import FINAL
from tunesmith.serving.store.tables import Checkpoint, Event, Job, Model

ORIGIN_KEY = "imported_from"
"""Metadata key with the origin of a job; `jobs.list(metadata={...})` filters by it."""
LEVELS, TYPES = ("info", "warn", "error"), ("message", "metrics")


def kept_id(prefix: str, remote: str) -> str:
    """The id if it is valid, else one derived from it: ids become file names."""
    if remote.startswith(prefix) and is_id(remote):
        return remote
    return id_of(prefix, remote)


def file_id(remote: object) -> str | None:
    return kept_id("file-", remote) if isinstance(remote, str) and remote else None


def job_row(job: RemoteObject, organization: str, host: str) -> Job:
    """A finished job, stored as history without a run. Raises ValueError for an invalid or unfinished job."""
    method = job.get("method")
    training = file_id(job.get("training_file"))
    if job.get("status") not in FINAL or not isinstance(job.get("model"), str) or training is None:
        raise ValueError("not a finished job")
    error, results = job.get("error"), job.get("result_files")
    numbers = _numbers(job)
    return Job(
        id=kept_id("ftjob-", str(job["id"])),
        organization=organization,
        created_at=as_int(job.get("created_at")) or 0,
        model=job["model"],
        base=job["model"],
        stacked_on=None,
        suffix=job.get("user_provided_suffix"),
        seed=as_int(job.get("seed")) or 0,
        method=method if isinstance(method, dict) else _supervised(numbers),
        hyperparameters=numbers,
        training_file=training,
        validation_file=file_id(job.get("validation_file")),
        labels=_labels(job.get("metadata"), host),
        integrations=job.get("integrations") or None,
        status=job["status"],
        fine_tuned_model=job.get("fine_tuned_model"),
        trained_tokens=as_int(job.get("trained_tokens")),
        error=error if isinstance(error, dict) and error.get("code") else None,
        finished_at=as_int(job.get("finished_at")),
        estimated_finish=None,
        result_files=[id for id in map(file_id, results if isinstance(results, list) else []) if id],
        run_dir=None,
        idempotency=None,
        settled=True,
        details={ORIGIN_KEY: host, "remote_id": job["id"]},
    )


def event_rows(events: Sequence[RemoteObject], job: Job, host: str, now: float) -> list[Event]:
    """Events, oldest first, followed by one that names the origin of the job. events: newest first."""
    rows = [
        Event(
            source=f"imported:{event['id']}"[:200],
            created_at=as_int(event.get("created_at")) or job.created_at,
            level=event.get("level") if event.get("level") in LEVELS else "info",
            type=event.get("type") if event.get("type") in TYPES else "message",
            message=str(event.get("message") or ""),
            data=event.get("data") if isinstance(event.get("data"), dict) else {},
        )
        for event in reversed(events)
    ]
    message = f"Imported from {host} as history"
    if job.fine_tuned_model:
        message += f"; the weights of {job.fine_tuned_model} were not imported, so this server cannot serve it"
    rows.append(Event(source="imported", created_at=int(now), level="info", type="message", message=message, data={}))
    return rows


def checkpoint_row(checkpoint: RemoteObject, job: Job) -> Checkpoint:
    """Raises KeyError or ValueError for an invalid checkpoint."""
    row = Checkpoint(id=kept_id("ftckpt_", str(checkpoint["id"])), job_id=job.id)
    row.created_at = as_int(checkpoint.get("created_at")) or job.created_at
    if (step := as_int(checkpoint["step_number"])) is None:
        raise ValueError("step_number is not a number")
    row.step_number, row.name = step, str(checkpoint["fine_tuned_model_checkpoint"])
    metrics = checkpoint.get("metrics")
    measured = metrics.items() if isinstance(metrics, dict) else ()
    row.metrics = {key: value for key, value in measured if value is not None}
    return row


def model_row(name: str, job: Job, host: str, home: Path) -> Model:
    """A model name without weights. base: contains spaces, so it matches no base of a server. adapter: a directory that
    does not exist."""
    origin = f"{job.model} at {host} (imported as history without weights)"
    missing = home / "imported" / id_of("", name)
    created = job.finished_at or job.created_at
    row = Model(name=name, organization=job.organization, created_at=created, base=origin, adapter=str(missing))
    row.parent, row.job_id = origin, job.id
    return row


def _labels(metadata: object, host: str) -> dict[str, str]:
    """Metadata of the job, plus its origin if another pair is allowed."""
    labels = {
        str(key)[:MAX_KEY]: str(value)[:MAX_VALUE]
        for key, value in (metadata.items() if isinstance(metadata, dict) else ())
    }
    if len(labels) < MAX_PAIRS:
        labels[ORIGIN_KEY] = host
    return labels


def _numbers(job: RemoteObject) -> RemoteObject:
    method, numbers = job.get("method"), job.get("hyperparameters")
    if not numbers and isinstance(method, dict):
        inner = method.get(str(method.get("type")))
        numbers = inner.get("hyperparameters") if isinstance(inner, dict) else None
    return numbers if isinstance(numbers, dict) else {}


def _supervised(numbers: RemoteObject) -> RemoteObject:
    return {"type": "supervised", "supervised": {"hyperparameters": numbers}}


def as_int(value: object) -> int | None:
    """A number as an int; None for anything else."""
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

"""Objects of the hosted API as rows of the store. They keep their ids, so that code that knows them works on.

A model that was tuned there cannot be had: its name stands in the store as history, over a base that no server has, so
that whoever asks for it is told what became of it.
"""

from collections.abc import Sequence
from pathlib import Path

from tunesmith.serving.jobs.creation import MAX_KEY, MAX_PAIRS, MAX_VALUE
from tunesmith.serving.names import id_of, is_id
from tunesmith.serving.openai_import.hosted_api import RemoteObject
from tunesmith.serving.store.jobs import FINAL
from tunesmith.serving.store.tables import Checkpoint, Event, Job, Model

MARK = "imported_from"
"""The metadata key that tells where a job came from; `jobs.list(metadata={...})` finds by it."""
LEVELS, TYPES = ("info", "warn", "error"), ("message", "metrics")


def kept_id(prefix: str, remote: str) -> str:
    """The id itself where it has the form of an id, else one that is made of it: ids become names of files."""
    if remote.startswith(prefix) and is_id(remote):
        return remote
    return id_of(prefix, remote)


def file_id(remote: object) -> str | None:
    return kept_id("file-", remote) if isinstance(remote, str) and remote else None


def job_row(job: RemoteObject, organization: str, host: str) -> Job:
    """A job at its end, as history: nobody has anything to do about it. Raises ValueError for what is no job."""
    method = job.get("method")
    training = file_id(job.get("training_file"))
    if job.get("status") not in FINAL or not isinstance(job.get("model"), str) or training is None:
        raise ValueError("it is no job at its end")
    error, results = job.get("error"), job.get("result_files")
    numbers = _numbers(job)
    return Job(
        id=kept_id("ftjob-", str(job["id"])),
        organization=organization,
        created_at=whole(job.get("created_at")) or 0,
        model=job["model"],
        base=job["model"],
        stacked_on=None,
        suffix=job.get("user_provided_suffix"),
        seed=whole(job.get("seed")) or 0,
        method=method if isinstance(method, dict) else _supervised(numbers),
        hyperparameters=numbers,
        training_file=training,
        validation_file=file_id(job.get("validation_file")),
        labels=_labels(job.get("metadata"), host),
        integrations=job.get("integrations") or None,
        status=job["status"],
        fine_tuned_model=job.get("fine_tuned_model"),
        trained_tokens=whole(job.get("trained_tokens")),
        error=error if isinstance(error, dict) and error.get("code") else None,
        finished_at=whole(job.get("finished_at")),
        estimated_finish=None,
        result_files=[id for id in map(file_id, results if isinstance(results, list) else []) if id],
        run_dir=None,
        idempotency=None,
        settled=True,
        details={MARK: host, "remote_id": job["id"]},
    )


def event_rows(events: Sequence[RemoteObject], job: Job, host: str, now: float) -> list[Event]:
    """The oldest first, and behind them one that says where the job came from. events: the newest first."""
    rows = [
        Event(
            source=f"imported:{event['id']}"[:200],
            created_at=whole(event.get("created_at")) or job.created_at,
            level=event.get("level") if event.get("level") in LEVELS else "info",
            type=event.get("type") if event.get("type") in TYPES else "message",
            message=str(event.get("message") or ""),
            data=event.get("data") if isinstance(event.get("data"), dict) else {},
        )
        for event in reversed(events)
    ]
    message = f"Imported from {host} as history"
    if job.fine_tuned_model:
        message += f": the weights of {job.fine_tuned_model} stay there, and this server cannot answer with them"
    rows.append(Event(source="imported", created_at=int(now), level="info", type="message", message=message, data={}))
    return rows


def checkpoint_row(checkpoint: RemoteObject, job: Job) -> Checkpoint:
    """Raises KeyError or ValueError for what is no checkpoint."""
    row = Checkpoint(id=kept_id("ftckpt_", str(checkpoint["id"])), job_id=job.id)
    row.created_at = whole(checkpoint.get("created_at")) or job.created_at
    if (step := whole(checkpoint["step_number"])) is None:
        raise ValueError("its step_number is no number")
    row.step_number, row.name = step, str(checkpoint["fine_tuned_model_checkpoint"])
    metrics = checkpoint.get("metrics")
    measured = metrics.items() if isinstance(metrics, dict) else ()
    row.metrics = {key: value for key, value in measured if value is not None}
    return row


def model_row(name: str, job: Job, host: str, home: Path) -> Model:
    """A name without weights. base: no server's base has spaces in its name. adapter: where nothing ever lies."""
    origin = f"{job.model} at {host} (imported as history: its weights stay there)"
    nowhere = home / "imported" / id_of("", name)
    created = job.finished_at or job.created_at
    row = Model(name=name, organization=job.organization, created_at=created, base=origin, adapter=str(nowhere))
    row.parent, row.job_id = origin, job.id
    return row


def _labels(metadata: object, host: str) -> dict[str, str]:
    """The job's own, with the mark where there is room for it."""
    labels = {
        str(key)[:MAX_KEY]: str(value)[:MAX_VALUE]
        for key, value in (metadata.items() if isinstance(metadata, dict) else ())
    }
    if len(labels) < MAX_PAIRS:
        labels[MARK] = host
    return labels


def _numbers(job: RemoteObject) -> RemoteObject:
    method, numbers = job.get("method"), job.get("hyperparameters")
    if not numbers and isinstance(method, dict):
        inner = method.get(str(method.get("type")))
        numbers = inner.get("hyperparameters") if isinstance(inner, dict) else None
    return numbers if isinstance(numbers, dict) else {}


def _supervised(numbers: RemoteObject) -> RemoteObject:
    return {"type": "supervised", "supervised": {"hyperparameters": numbers}}


def whole(value: object) -> int | None:
    """A number as an integer; None for anything else."""
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

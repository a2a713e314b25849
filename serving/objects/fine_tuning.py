"""Fine-tuning objects of the API: jobs, events, checkpoints and checkpoint permissions."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from tunesmith.serving.store.tables import Checkpoint, Event, Job, JobError, Permission

_TOP = ("n_epochs", "batch_size", "learning_rate_multiplier")


class FineTuningJob(TypedDict):
    """hyperparameters: the older top-level field, with the keys of supervised training only. method:
    `{"type", <type>: {"hyperparameters"}}`. An imported job has the values that the other server sent."""

    object: Literal["fine_tuning.job"]
    id: str
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: str
    training_file: str
    validation_file: str | None
    result_files: Sequence[str]
    hyperparameters: Mapping[str, Any]
    method: Mapping[str, Any]
    seed: int
    trained_tokens: int | None
    error: JobError | None
    estimated_finish: int | None
    integrations: Sequence[Any]
    metadata: Mapping[str, str] | None
    user_provided_suffix: str | None


class JobEvent(TypedDict):
    """data: for an event of the type `metrics`, the step and its metrics; otherwise empty."""

    object: Literal["fine_tuning.job.event"]
    id: str
    created_at: int
    level: str
    message: str
    type: str
    data: Mapping[str, Any]


class JobCheckpoint(TypedDict):
    object: Literal["fine_tuning.job.checkpoint"]
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: Mapping[str, float]


class CheckpointPermission(TypedDict):
    object: Literal["checkpoint.permission"]
    id: str
    created_at: int
    project_id: str


def job_object(job: Job) -> FineTuningJob:
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": job.organization,
        "status": job.status,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": job.result_files,
        "hyperparameters": {key: job.hyperparameters[key] for key in _TOP if key in job.hyperparameters},
        "method": job.method,
        "seed": job.seed,
        "trained_tokens": job.trained_tokens,
        "error": job.error,
        "estimated_finish": job.estimated_finish if job.status == "running" else None,
        "integrations": job.integrations or [],
        "metadata": job.labels,
        "user_provided_suffix": job.suffix,
    }


def event_object(event: Event) -> JobEvent:
    return {
        "object": "fine_tuning.job.event",
        "id": event.id,
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def checkpoint_object(checkpoint: Checkpoint) -> JobCheckpoint:
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": checkpoint.id,
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": checkpoint.name,
        "fine_tuning_job_id": checkpoint.job_id,
        "step_number": checkpoint.step_number,
        "metrics": checkpoint.metrics,
    }


def permission_object(permission: Permission) -> CheckpointPermission:
    return {
        "object": "checkpoint.permission",
        "id": permission.id,
        "created_at": permission.created_at,
        "project_id": permission.project_id,
    }

"""Rows of the store as the API's objects."""

from typing import Any

from tunesmith.serving.store.tables import Checkpoint, Event, Job, Permission

_TOP = ("n_epochs", "batch_size", "learning_rate_multiplier")


def job_object(job: Job) -> dict[str, Any]:
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


def event_object(event: Event) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.event",
        "id": event.id,
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def checkpoint_object(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": checkpoint.id,
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": checkpoint.name,
        "fine_tuning_job_id": checkpoint.job_id,
        "step_number": checkpoint.step_number,
        "metrics": checkpoint.metrics,
    }


def permission_object(permission: Permission) -> dict[str, Any]:
    return {
        "object": "checkpoint.permission",
        "id": permission.id,
        "created_at": permission.created_at,
        "project_id": permission.project_id,
    }

"""The entries of the section tracking: experiment trackers."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tunesmith.configs.sections.section import Section


class TensorBoard(Section):
    """TensorBoard event files (package tensorboard)."""

    kind: Literal["tensorboard"]
    directory: Annotated[str, Field(min_length=1)] | None = None
    """Log directory that holds a folder per run, named after the run directory, for `tensorboard --logdir`; relative to
    the working directory. Null: `tensorboard/` in the run directory."""


def _without_credentials(value: object) -> object:
    """Refuse user names and passwords in a URI: the plan and the tracker's configuration would contain them."""
    if isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*@", value):
        raise ValueError(
            "the URI contains credentials, which the run directory would show; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI, in the environment"
        )
    return value


class Artifacts(Section):
    """What a tracker stores in addition to metrics and configuration."""

    log_report: bool = True
    """Store the report and the summary of the receipts. The report contains sample answers and rejected rows."""
    log_model: bool | None = None
    """Store the export. Null: only if it is an adapter."""


class MLflow(Artifacts):
    """An MLflow tracking server or database (package mlflow or mlflow-skinny)."""

    kind: Literal["mlflow"]
    tracking_uri: Annotated[str, Field(min_length=1), BeforeValidator(_without_credentials)] | None = None
    """`https://...`, `sqlite:///file.db`, ... Null: the environment variable MLFLOW_TRACKING_URI, or `mlflow.db` in the
    working directory, as in MLflow."""
    experiment: Annotated[str, Field(min_length=1)] | None = None
    """Name of the experiment, created if it does not exist. Null: the environment variable MLFLOW_EXPERIMENT_NAME, or
    `tunesmith`."""
    run_name: Annotated[str, Field(min_length=1)] | None = None
    """Null: the name of the recipe."""
    tags: dict[str, str] = {}
    """Tags of the run."""


class Wandb(Artifacts):
    """Weights & Biases (package wandb). The API key is read from WANDB_API_KEY or the login of `wandb login`."""

    kind: Literal["wandb"]
    project: Annotated[str, Field(min_length=1)] | None = None
    """Null: the environment variable WANDB_PROJECT, or `tunesmith`."""
    entity: Annotated[str, Field(min_length=1)] | None = None
    """User or team. Null: the environment variable WANDB_ENTITY, or the default of the account."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """Name of the run. Null: the name of the recipe."""
    group: Annotated[str, Field(min_length=1)] | None = None
    """Group of runs. Null: the environment variable WANDB_RUN_GROUP, if set."""
    tags: list[str] = []
    """Tags of the run."""
    mode: Literal["online", "offline"] | None = None
    """offline: only write files, for `wandb sync`. Null: the environment variable WANDB_MODE, or online."""
    directory: Annotated[str, Field(min_length=1)] | None = None
    """Parent of the `wandb` folder; relative to the working directory. Null: the environment variable WANDB_DIR, or the
    run directory."""


class Trackio(Artifacts):
    """Trackio (package trackio): a local database, or a Hugging Face Space. A token for a Space is read from HF_TOKEN
    or the login of `hf auth login`."""

    kind: Literal["trackio"]
    project: Annotated[str, Field(min_length=1)] | None = None
    """Null: the environment variable TRACKIO_PROJECT, or `tunesmith`."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """Name of the run, followed by its ID. Null: the name of the recipe."""
    group: Annotated[str, Field(min_length=1)] | None = None
    """Group of runs."""
    space_id: Annotated[str, Field(min_length=1)] | None = None
    """A Hugging Face Space, `organization/name`. Null: the environment variable TRACKIO_SPACE_ID, or the local
    database, in the directory TRACKIO_DIR."""


def _tracker_as_written(value: object) -> object:
    """Read a tracker without options, which may be written as its name."""
    return {"kind": value} if isinstance(value, str) else value


Tracker = Annotated[
    TensorBoard | MLflow | Wandb | Trackio, Field(discriminator="kind"), BeforeValidator(_tracker_as_written)
]


def _each_tracker_once(trackers: list[Tracker]) -> list[Tracker]:
    kinds = [tracker.kind for tracker in trackers]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"{twice[0]} is listed more than once; remove all but one entry")
    return trackers

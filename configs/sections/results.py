"""The sections checkpoint, evaluation and export: what a run saves, scores and publishes."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from tunesmith.configs.sections.section import Section


class Checkpoint(Section):
    """When checkpoints are written, how many are kept, and where they are mirrored."""

    every_steps: PositiveInt | None = None
    """Optimizer steps between checkpoints; null: once per epoch. A final checkpoint is always written."""
    keep_last: PositiveInt = 3
    """Number of newest checkpoints to keep; the best checkpoint is also kept."""
    background: bool | None = None
    """Write checkpoints asynchronously, from a copy in memory (12 bytes per trained weight). Null: if memory allows."""
    mirror: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]+://")] | None = None
    """A URL (s3://bucket/folder, file:///disk, ...) that every checkpoint is also copied to, under the name of the run
    directory. A run without local checkpoints resumes from the newest complete checkpoint there."""


class EarlyStopping(Section):
    """Stop when the validation loss no longer improves."""

    patience: PositiveInt = 3
    """Consecutive evaluations without improvement after which the run stops and exports its best checkpoint."""
    min_delta: NonNegativeFloat = 0.0
    """Minimum decrease of the validation loss (nats per token) that counts as an improvement."""


class Evaluation(Section):
    """Evaluation during training, and the answers and baselines of the report."""

    every_steps: PositiveInt | None = None
    """Optimizer steps between evaluations on the validation rows; null: only before the first and after the last."""
    early_stopping: EarlyStopping | None = None
    num_answers: NonNegativeInt = 3
    """Number of validation prompts that the model answers before and after training, for the report."""
    max_new_tokens: PositiveInt = 64
    """Maximum number of tokens of such an answer."""
    retain: str | None = None
    """A file (or pattern) of general rows that are scored before and after training, to measure forgetting.
    Paths: relative to the recipe, then to the working directory."""
    few_shot: NonNegativeInt = 0
    """Number of training rows in the prompt of a few-shot baseline: the untrained model on the validation rows."""


class Export(Section):
    """The form of the exported model."""

    form: Literal["auto", "adapter", "merged"] = "auto"
    """adapter: the adapter only; merged: the full model. auto: the adapter, if the method trains one and the recipe
    adds no tokens."""

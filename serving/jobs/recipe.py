"""The recipe of a job: an ordinary run, which could be started from the command line as well."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.data import Deidentify
from tunesmith.rundir.atomic import write_text
from tunesmith.serving.jobs.hyperparameters import learning_rate

MAX_SEQ_LEN = 16_384
"""Limit of tokens per example, if the model's context is longer; longer examples are truncated at the end."""
KEPT_CHECKPOINTS = 3


@dataclass(frozen=True)
class TrainingRequest:
    """A validated job.

    base: directory of the base model. start_from: directory of the adapter to continue from. kind: of the rows, which
    is the recipe's task. numbers: resolved hyperparameters. context: context length of the model in tokens; None:
    unlimited. trackers: the recipe's key `tracking`.
    """

    job_id: str
    base: Path
    start_from: Path | None
    method: str
    kind: str
    numbers: Mapping[str, float]
    seed: int
    num_examples: int
    train: Path
    validation: Path | None
    context: int | None
    deidentify: Deidentify | None = None
    split_special_tokens: bool = True
    trackers: Sequence[Mapping[str, Any]] = ()


def recipe_of(request: TrainingRequest) -> Recipe:
    numbers = request.numbers
    epoch_steps = max(1, math.ceil(request.num_examples / numbers["batch_size"]))
    values: dict[str, Any] = {
        "name": request.job_id,
        "model": {"base": str(request.base)},
        "task": request.kind,
        "method": {"kind": "lora"},
        "data": {
            "train": [str(request.train)],
            "validation": [str(request.validation)] if request.validation else 0.0,
            "max_seq_len": min(request.context or MAX_SEQ_LEN, MAX_SEQ_LEN),
            "too_long": "truncate",
            # One example per sequence, so that batch_size counts examples. There is no padding either way.
            "packing": False,
        },
        "optimization": {
            "learning_rate": learning_rate(request.method, numbers),
            "global_batch_size": int(numbers["batch_size"]),
            "epochs": int(numbers["n_epochs"]),
        },
        "checkpoint": {"every_steps": epoch_steps, "keep_last": KEPT_CHECKPOINTS + 1},
        "evaluation": {"every_steps": epoch_steps if request.validation else None, "num_answers": 0},
        # Killed workers are first restarted by the launcher, from the newest checkpoint.
        "resources": {"max_restarts": 3},
        "export": {"form": "adapter"},
        "seed": request.seed,
    }
    if not request.split_special_tokens:
        values["data"]["split_special_tokens"] = False
    if request.deidentify is not None:
        values["data"]["deidentify"] = request.deidentify.model_dump()
    if request.trackers:
        values["tracking"] = [dict(tracker) for tracker in request.trackers]
    if request.method == "dpo":
        values["preference"] = {"loss": "dpo", "beta": numbers["beta"]}
    if request.start_from is not None:
        values["method"]["start_from"] = str(request.start_from)
    return Recipe.model_validate(values)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML, deterministically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False))

"""Weights & Biases. Its own process (wandb-core) uploads, or writes files in offline mode."""

import os
import secrets
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tunesmith.configs.sections.trackers import Wandb
from tunesmith.tracking.metrics import Point
from tunesmith.tracking.state import TrackerState
from tunesmith.tracking.tracker import Artifact, Tracked
from tunesmith.tracking.wandb_files import last_steps

DEFAULT_PROJECT = "tunesmith"
EXIT_CODES = {"done": 0, "early_stopped": 0, "preempted": 75}
ARTIFACT_WAIT_S = 3600


class WandbTracker:
    """A row of the history per step, with the names of the metrics grouped by their first part."""

    def __init__(self, options: Wandb, tracked: Tracked):
        self._options, self._tracked = options, tracked
        self._run: Any = None

    def open(self, state: TrackerState) -> dict[str, int]:
        import wandb

        options, run_dir = self._options, self._tracked.run.root.resolve()
        state.run_id = state.run_id or secrets.token_hex(4)
        if options.directory:
            parent = self._tracked.working_dir / options.directory
        else:
            parent = Path(os.environ.get("WANDB_DIR") or run_dir)
        parent.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DATA_DIR", str(parent))  # copies of artifacts, otherwise in the home directory
        stored = last_steps(parent / "wandb", state.run_id)
        self._run = wandb.init(
            project=options.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            entity=options.entity,
            id=state.run_id,
            name=options.name or self._tracked.name,
            group=options.group,
            tags=options.tags or None,
            dir=str(parent),
            config=self._tracked.configuration,
            resume="allow",
            mode=options.mode,
            # the console and the repository of this process are not those of the training
            settings=wandb.Settings(console="off", disable_git=True, save_code=False, silent=True),
        )
        state.url = "" if self._run.offline else self._run.url or ""
        if not self._run.offline and self._run.starting_step:
            stored = {"": int(self._run.starting_step) - 1}
        return stored

    def send(self, points: Sequence[Point]) -> None:
        for step, row in groupby(points, key=lambda point: point.step):
            self._run.log({point.key: point.value for point in row}, step=step)

    def store(self, artifact: Artifact) -> None:
        import wandb

        stored = wandb.Artifact(f"{self._tracked.name}-{artifact.name}", type=artifact.kind)
        if artifact.path.is_dir():
            stored.add_dir(str(artifact.path), policy="immutable", skip_cache=True)
        else:
            stored.add_file(str(artifact.path), policy="immutable", skip_cache=True)
        logged = self._run.log_artifact(stored)
        if not self._run.offline:
            logged.wait(timeout=ARTIFACT_WAIT_S)

    def close(self, outcome: str) -> None:
        self._run.summary["outcome"] = outcome
        self._run.finish(exit_code=EXIT_CODES.get(outcome, 1))

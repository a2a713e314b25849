"""Trackio: a local database, or a Hugging Face Space."""

import os
import secrets
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from tunesmith.configs.sections.trackers import Trackio
from tunesmith.tracking.metrics import Point
from tunesmith.tracking.state import TrackerState
from tunesmith.tracking.tracker import Artifact, Tracked

DEFAULT_PROJECT = "tunesmith"


class TrackioTracker:
    """Trackio continues runs by name, so the name of each ends with an ID."""

    def __init__(self, options: Trackio, tracked: Tracked):
        self._options, self._tracked = options, tracked
        self._run: Any = None

    def open(self, state: TrackerState) -> dict[str, int]:
        import trackio

        project = self._options.project or os.environ.get("TRACKIO_PROJECT") or DEFAULT_PROJECT
        space_id = self._options.space_id or os.environ.get("TRACKIO_SPACE_ID")
        state.run_id = state.run_id or f"{self._options.name or self._tracked.name}-{secrets.token_hex(3)}"
        self._run = trackio.init(
            project=project,
            name=state.run_id,
            group=self._options.group,
            space_id=space_id,
            private=True if space_id else None,  # Trackio creates public Spaces otherwise
            config=self._tracked.configuration,
            resume="allow",
            embed=False,
            # the hardware of this process is not always that of the training
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        if space_id:
            state.url = f"https://huggingface.co/spaces/{space_id}"
            return {"": int(getattr(self._run, "_next_step", 0)) - 1}
        return last_steps(project, state.run_id)

    def send(self, points: Sequence[Point]) -> None:
        for step, row in groupby(points, key=lambda point: point.step):
            self._run.log({point.key: point.value for point in row}, step=step)

    def store(self, artifact: Artifact) -> None:
        self._run.log_artifact(artifact.path, name=f"{self._tracked.name}-{artifact.name}", type=artifact.kind)

    def close(self, outcome: str) -> None:
        self._run.finish()


def last_steps(project: str, name: str) -> dict[str, int]:
    """The last step of each metric of a run in the local database; empty if it has none."""
    from trackio.sqlite_storage import SQLiteStorage

    steps: dict[str, int] = {}
    for row in SQLiteStorage.get_logs(project, name):
        steps.update({key: max(int(row["step"]), steps.get(key, 0)) for key in row if "/" in key})
    return steps

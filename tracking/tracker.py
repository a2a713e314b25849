"""The protocol of a tracker, and what it needs to know about a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunesmith.configs.plan import Plan
from tunesmith.rundir.paths import RunDir
from tunesmith.tracking.metrics import Point
from tunesmith.tracking.state import TrackerState


@dataclass(frozen=True)
class Artifact:
    """A file or directory to store. name: report | receipts | export. kind: report | dataset | model."""

    name: str
    kind: str
    path: Path


@dataclass(frozen=True)
class Tracked:
    """A run as trackers see it. working_dir: directory that paths in a tracker's options are relative to."""

    run: RunDir
    plan: Plan
    configuration: dict[str, Any]
    working_dir: Path

    @property
    def name(self) -> str:
        return self.plan.recipe.name


class Tracker(Protocol):
    """One tool. Every method may block or raise: it runs in a process of its own, which is restarted."""

    def open(self, state: TrackerState) -> dict[str, int]:
        """Create the run in the tracker, or continue the one of the state; set run_id and url in the state.

        Returns the last step that the tracker itself has stored, by key of the points; under an empty key a step that
        holds for every metric. Empty if it cannot be read.
        """
        ...

    def send(self, points: Sequence[Point]) -> None:
        """Store points, which are ordered by time. Returns once they are stored, or handed to a process of the tool."""
        ...

    def store(self, artifact: Artifact) -> None:
        """Store an artifact; a tracker without artifacts records where it is."""
        ...

    def close(self, outcome: str) -> None:
        """End the run in the tracker. outcome: done | early_stopped | preempted | failed; a later attempt opens it
        again."""
        ...

"""TensorBoard event files, written with the tensorboard package and without TensorFlow or torch."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.configs.sections.trackers import TensorBoard
from tunesmith.tracking.configuration import flat
from tunesmith.tracking.metrics import Point
from tunesmith.tracking.state import TrackerState
from tunesmith.tracking.tracker import Artifact, Tracked


class TensorBoardTracker:
    """Each process writes a file of its own; TensorBoard shows the files of a directory as one run."""

    def __init__(self, options: TensorBoard, tracked: Tracked):
        self._tracked = tracked
        name = tracked.run.root.resolve().name
        folder = tracked.working_dir / options.directory / name if options.directory else tracked.run.tensorboard
        self.directory: Path = folder
        self._writer: Any = None
        self._shown: dict[str, str] = {}

    def open(self, state: TrackerState) -> dict[str, int]:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        is_new = not state.run_id
        if is_new:
            state.run_id = self._tracked.run.root.resolve().name
        stored = last_steps(self.directory)
        self._writer = EventFileWriter(str(self.directory))
        if is_new:
            self._write_configuration()
        self._writer.flush()
        return stored

    def send(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto import summary_pb2

        messages: Any = summary_pb2  # its classes are generated when it is imported
        for point in points:
            value = messages.Summary.Value(tag=point.key, simple_value=point.value)
            self._add(messages.Summary(value=[value]), point.step, point.time)
        self._writer.flush()

    def store(self, artifact: Artifact) -> None:
        self._text(artifact.name, f"`{artifact.path.name}` in the run directory `{self._tracked.run.root.name}`")
        self._writer.flush()

    def close(self, outcome: str) -> None:
        self._text("outcome", outcome)
        self._writer.close()

    def _write_configuration(self) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        configuration = self._tracked.configuration
        for section, values in configuration.items():
            rows = [f"| {path} | `{json.dumps(value, ensure_ascii=False)}` |" for path, value in flat(values)]
            self._text(section, "\n".join(["| key | value |", "|---|---|", *(row.replace("\n", " ") for row in rows)]))
        recipe = {path: value for path, value in flat(configuration.get("recipe", {})) if value is not None}
        hparams = {
            path: value if isinstance(value, int | float | str) else json.dumps(value) for path, value in recipe.items()
        }
        self._add(hparams_pb(hparams, trial_id=self._tracked.run.root.resolve().name))

    def _text(self, tag: str, text: str) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(text_pb(tag, text))

    def _add(self, summary: Any, step: int = 0, wall_time: float | None = None) -> None:
        from tensorboard.compat.proto import event_pb2

        messages: Any = event_pb2
        self._writer.add_event(messages.Event(wall_time=wall_time or time.time(), step=step, summary=summary))


def last_steps(directory: Path) -> dict[str, int]:
    """The last step of every scalar in a log directory; empty if it does not exist. A torn record ends its file."""
    if not any(directory.glob("*tfevents*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 1})
    accumulator.Reload()
    return {tag: accumulator.Scalars(tag)[-1].step for tag in accumulator.Tags()["scalars"]}

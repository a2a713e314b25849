"""Sends the events of a run to one tracker, from the run directory alone.

What the tracker itself has stored decides where sending starts: a process that was killed between sending and writing
its state neither repeats points nor leaves a gap.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tunesmith.configs.sections.trackers import TensorBoard
from tunesmith.rundir.event_log import EventFollower, read_events
from tunesmith.rundir.events import ExportEvent
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, read_status
from tunesmith.tracking.metrics import new_points, points_of
from tunesmith.tracking.state import PATIENCE_S, TrackerState, only_sender, read_state, state_file
from tunesmith.tracking.tracker import Artifact, Tracked, Tracker
from tunesmith.tracking.trackers import Options, open_tracker, place_of

POLL_S = 1.0
CHUNK = 500
"""Events that are sent before the state is written."""
SLOWEST_BYTES_PER_S = 1e6
"""An upload that is slower counts as stalled."""


def follow(
    tracked: Tracked, options: Options, *, has_ended: Callable[[], bool] = lambda: True, poll_s: float = POLL_S
) -> TrackerState:
    """Send the events of the log as they are written until `has_ended`, then what is left, the artifacts of a finished
    run, and how it ended.

    Raises RunFault if another process does so already, and whatever the tracker raises.
    """
    run = tracked.run
    with only_sender(run, options.kind):
        path = state_file(run, options.kind)
        state = read_state(path)
        if state.place != place_of(options):
            state = TrackerState(place=place_of(options))
        tracker = open_tracker(options, tracked)
        stored = tracker.open(state)
        state.position, state.closed = 0, ""
        state.write(path)
        last_steps = _later(state.last_steps, stored)
        follower = EventFollower(run.events)
        while True:
            is_last = has_ended()  # before reading: whatever was written until then is read
            for position in _send(tracker, follower, last_steps):
                state.position = position
                state.write(path)
            if is_last:
                break
            time.sleep(poll_s)
        _finish(tracked, options, tracker, state)
        state.last_steps = {key: step for key, step in last_steps.items() if key}
        state.write(path)
        return state


def _send(tracker: Tracker, follower: EventFollower, last_steps: dict[str, int]) -> Iterator[int]:
    """Send the new events; yield the position in the log after each chunk."""
    events = follower.placed()
    for start in range(0, len(events), CHUNK):
        chunk = events[start : start + CHUNK]
        points = new_points([point for _, event in chunk for point in points_of(event)], last_steps)
        if points:
            tracker.send(points)
        for point in points:
            last_steps[point.key] = point.step
        following = start + CHUNK
        yield events[following][0] if following < len(events) else follower.position


def _finish(tracked: Tracked, options: Options, tracker: Tracker, state: TrackerState) -> None:
    run, path = tracked.run, state_file(tracked.run, options.kind)
    status = read_status(run.status)
    outcome = status.phase if status is not None and status.phase in FINAL else "preempted"
    if outcome != "preempted":
        for artifact, version in _artifacts(run, options):
            if state.artifacts.get(artifact.name) != version:
                state.patience_s = PATIENCE_S + _num_bytes(artifact.path) / SLOWEST_BYTES_PER_S
                state.write(path)
                tracker.store(artifact)
                state.artifacts[artifact.name] = version
    state.patience_s = PATIENCE_S
    state.write(path)
    tracker.close(outcome)
    state.closed = outcome


def _artifacts(run: RunDir, options: Options) -> Iterator[tuple[Artifact, str]]:
    """Yield what the options select, each with a text that changes with its content."""
    has_report = isinstance(options, TensorBoard) or options.log_report
    for name, kind, path in (("report", "report", run.report), ("receipts", "dataset", run.receipts / "summary.json")):
        if has_report and path.is_file():
            yield Artifact(name, kind, path), hashlib.sha256(path.read_bytes()).hexdigest()
    export = next(reversed(list(read_events(run.events, ExportEvent))), None)
    if export is None or not run.export.is_dir():
        return
    is_selected = True if isinstance(options, TensorBoard) else options.log_model
    if is_selected or (is_selected is None and export.form == "adapter"):
        yield Artifact("export", "model", run.export), str(export.time)


def _num_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _later(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {key: max(first.get(key, -1), second.get(key, -1)) for key in {*first, *second}}

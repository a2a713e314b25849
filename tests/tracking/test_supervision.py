"""Trackers that are killed, stopped, unreachable or broken during a run: one warning, no lost data."""

import os
import signal
import socket
import time

import pytest

from tests.event_lines import event_lines
from tests.tracking import readers
from tests.tracking.conftest import lines_until, recorded_series
from tests.tracking.test_trackers import require_equal
from tests.waiting import wait_for
from tunesmith.launcher.runs.tracking import Trackers, track
from tunesmith.rundir.paths import RunDir
from tunesmith.tracking.state import read_state, state_file


@pytest.fixture
def half(run) -> tuple[RunDir, str]:
    """The run with the first half of its log, and the text of the other half."""
    whole = run.events.read_text(encoding="utf-8")
    first = "".join(lines_until(run.events, 20))
    run.events.write_text(first)
    return run, whole[len(first) :]


def append(run: RunDir, text: str) -> None:
    with open(run.events, "a", encoding="utf-8") as file:
        file.write(text)


def warnings_of(run: RunDir) -> list[str]:
    return [event["message"] for event in event_lines(run.events, "warning")]


def polled(trackers: Trackers, condition, seconds: list[float] | None = None):
    """Poll as the launcher does until the condition holds. seconds: gets the duration of each poll."""

    def poll():
        begun = time.perf_counter()
        trackers.poll()
        if seconds is not None:
            seconds.append(time.perf_counter() - begun)
        return condition()

    return wait_for(poll, every_s=0.1)


def has_sent_all(run: RunDir, kind: str) -> bool:
    return read_state(state_file(run, kind)).position >= run.events.stat().st_size


def pid_of(run: RunDir, kind: str) -> int:
    return int((run.tracking / f"{kind}.lock").read_text())


def test_a_killed_process_is_started_again_and_continues(half):
    run, rest = half
    trackers = Trackers(run, ["tensorboard"])
    trackers.start()
    polled(trackers, lambda: has_sent_all(run, "tensorboard"))
    os.kill(pid_of(run, "tensorboard"), signal.SIGKILL)
    append(run, rest)
    polled(trackers, lambda: has_sent_all(run, "tensorboard"))
    trackers.finish()
    require_equal(readers.tensorboard(run.root), recorded_series(run.events), "tensorboard")
    assert read_state(state_file(run, "tensorboard")).closed == "done"
    assert warnings_of(run) == []


def test_a_stopped_process_costs_one_warning_and_no_time(half):
    run, rest = half
    trackers = Trackers(run, ["tensorboard"], stalled_s=1.0)
    trackers.start()
    polled(trackers, lambda: has_sent_all(run, "tensorboard"))
    pid = pid_of(run, "tensorboard")
    os.kill(pid, signal.SIGSTOP)
    append(run, rest)
    begun, seconds = time.perf_counter(), []
    polled(trackers, lambda: warnings_of(run), seconds)
    polled(trackers, lambda: len(seconds) > 40, seconds)
    assert sum(seconds) < 0.01 * (time.perf_counter() - begun)
    trackers.finish()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    (warning,) = warnings_of(run)
    assert "tensorboard receives nothing: it has not responded for 1 seconds" in warning
    assert f"tunesmith track {run.root}" in warning

    assert track(run, "tensorboard") == 0
    require_equal(readers.tensorboard(run.root), recorded_series(run.events), "tensorboard")


@pytest.mark.parametrize("answers", ["never", "refused"])
def test_a_server_that_does_not_answer_costs_one_warning(run, with_tracking, answers):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers == "never":
            server.listen()
        with_tracking(f"[{{kind: mlflow, tracking_uri: 'http://127.0.0.1:{server.getsockname()[1]}'}}]")
        trackers = Trackers(run, ["mlflow"], stalled_s=2.0)
        trackers.start()
        polled(trackers, lambda: warnings_of(run))
        begun = time.monotonic()
        trackers.finish()
        trackers.kill()
        assert time.monotonic() - begun < 10
    (warning,) = warnings_of(run)
    assert warning.startswith("mlflow receives nothing: it has not responded")


def test_a_tracker_that_fails_repeatedly_is_reported_once_with_its_error(run, with_tracking):
    (run.root / "file").touch()
    with_tracking("[{kind: tensorboard, directory: run/file}]")
    trackers = Trackers(run, ["tensorboard"])
    trackers.start()
    polled(trackers, lambda: warnings_of(run))
    trackers.finish()
    (warning,) = warnings_of(run)
    assert warning.startswith("tensorboard receives nothing: ")
    assert "Not a directory" in warning


def test_only_one_process_sends_a_run(run):
    trackers = Trackers(run, ["tensorboard"])
    trackers.start()
    polled(trackers, lambda: has_sent_all(run, "tensorboard"))
    assert track(run, "tensorboard") == 1
    trackers.finish()

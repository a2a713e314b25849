"""The end of an attempt is recorded on its behalf: once, fenced, and without raising another error."""

import json
import threading

import pytest

from tests.event_lines import event_lines
from tunesmith.errors import InputError, RunFault
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.fence import begin_attempt
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, read_status

FAULT = RunFault("rank 1 hangs", where="node2", remedy="resume the run")


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A run whose attempt 2 is training and has completed four steps."""
    run = RunDir(tmp_path / "run")
    run.create()
    begin_attempt(run, 2)
    Status("training", step=4, total_steps=9, attempt=2, eta_s=60.0).write(run.status)
    return run


def ended(run: RunDir) -> tuple[str, int | None, int, int]:
    status = read_status(run.status)
    assert status is not None
    return status.phase, status.exit_code, status.attempt, status.step


def test_a_failure_writes_an_error_event_an_end_event_and_the_status(run):
    record_end(run, 2, FAULT)
    error, end = ({key: value for key, value in line.items() if key != "time"} for line in event_lines(run.events))
    assert error == {"kind": "error", "what": "rank 1 hangs", "where": "node2", "remedy": "resume the run"}
    assert end == {"kind": "end", "outcome": "failed", "step": 4, "exit_code": 1, "seconds": None}
    assert ended(run) == ("failed", 1, 2, 4)
    assert json.loads(run.status.read_text())["eta_s"] is None


def test_a_preemption_writes_no_error_and_invalid_input_has_exit_code_2(run):
    record_end(run, 2, None)
    assert [line["kind"] for line in event_lines(run.events)] == ["end"]
    assert ended(run) == ("preempted", 75, 2, 4)
    record_end(run, 3, InputError("the ranks disagree"), step=6, seconds=1.5)
    assert ended(run) == ("failed", 2, 3, 6)
    *_, end = event_lines(run.events)
    assert (end["step"], end["exit_code"], end["seconds"]) == (6, 2, 1.5)


def test_only_the_first_end_of_the_newest_attempt_is_recorded(run):
    record_end(run, 1, FAULT)
    assert not run.events.exists()
    record_end(run, 2, None)
    record_end(run, 2, FAULT)
    assert ended(run) == ("preempted", 75, 2, 4)
    record_end(run, 2, FAULT, replace=True)
    assert ended(run) == ("failed", 1, 2, 4)


def test_without_a_worker_no_end_event_is_written_and_a_bug_writes_no_error_event(run):
    record_end(run, 2, KeyError("x"), has_begun=False)
    assert not run.events.exists()
    assert ended(run) == ("failed", 1, 2, 4)
    record_end(run, 3, FAULT, has_begun=False)
    assert [line["kind"] for line in event_lines(run.events)] == ["error"]


def test_of_ranks_that_fail_at_once_one_records_the_error(run):
    ready = threading.Barrier(8)

    def fail() -> None:
        ready.wait()
        record_end(run, 2, FAULT)

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line["kind"] for line in event_lines(run.events)] == ["error", "end"]


def test_write_errors_are_not_raised(run, tmp_path):
    run.events.symlink_to("/dev/full")
    record_end(run, 2, FAULT)
    record_end(RunDir(tmp_path / "gone"), 1, FAULT)
    assert not (tmp_path / "gone").exists()

"""The status file, and whether its process is running."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.waiting import wait_for
from tunesmith.rundir.status import FINAL, STALE_AFTER_S, Status, is_running, read_status


def test_a_status_round_trips_with_pid_and_heartbeat(tmp_path):
    before = time.time()
    Status("training", step=3, total_steps=9, attempt=2, eta_s=1.5).write(tmp_path / "status.json")
    status = read_status(tmp_path / "status.json")
    assert status is not None
    assert (status.phase, status.step, status.total_steps, status.attempt, status.eta_s) == ("training", 3, 9, 2, 1.5)
    assert status.pid == os.getpid()
    assert before <= status.heartbeat <= time.time()
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_an_unknown_phase_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="unknown phase 'sleeping'"):
        Status("sleeping").write(tmp_path / "s")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"step": 1}', "\xff"])
def test_a_damaged_status_is_read_as_none(tmp_path, content):
    (tmp_path / "s").write_text(content, encoding="latin-1")
    assert read_status(tmp_path / "s") is None


def test_a_missing_status_is_read_as_none_and_unknown_fields_are_ignored(tmp_path):
    assert read_status(tmp_path / "s") is None
    (tmp_path / "s").write_text(json.dumps({"phase": "training", "step": 4, "colour": "red"}))
    assert read_status(tmp_path / "s") == Status("training", step=4)


def test_readers_never_see_a_partial_file_while_threads_write(tmp_path):
    path = tmp_path / "s"
    Status("training").write(path)
    errors = []

    def write():
        try:
            for step in range(200):
                Status("training", step=step).write(path)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert read_status(path) is not None
    assert not errors
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def written(tmp_path, phase: str = "training") -> Status:
    Status(phase).write(tmp_path / "s")
    status = read_status(tmp_path / "s")
    assert status is not None
    return status


def test_this_process_is_running_unless_its_phase_is_final(tmp_path):
    assert is_running(written(tmp_path))
    for phase in FINAL:
        assert not is_running(written(tmp_path, phase))


def test_a_killed_process_is_not_running_even_before_it_is_reaped(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    status = written(tmp_path)
    status.pid, status.heartbeat = child.pid, time.time()
    assert is_running(status)
    child.kill()
    wait_for(lambda: not is_running(status), explain=lambda: "a zombie is not running")
    child.wait()
    assert not is_running(status)


def test_a_reused_pid_is_not_the_process(tmp_path):
    status = written(tmp_path)
    status.heartbeat = time.time() - 1e6  # long before this process started
    assert not is_running(status)


def test_the_heartbeat_decides_on_another_host(tmp_path):
    status = written(tmp_path)
    status.host, status.pid = "elsewhere", 1
    assert is_running(status)
    status.heartbeat -= STALE_AFTER_S + 1
    assert not is_running(status)

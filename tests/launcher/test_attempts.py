"""State of earlier attempts is read, and a worker that is still saving is waited for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.event_lines import an_event
from tests.waiting import wait_for
from tunesmith.errors import InputError
from tunesmith.launcher.attempts import is_finished, next_attempt, stored_plan, wait_for_lock
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.lock import run_lock
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status

ORPHAN = """
import subprocess, sys, os
from pathlib import Path
from tunesmith.rundir.lock import run_lock
from tunesmith.rundir.paths import RunDir
with run_lock(RunDir(Path(sys.argv[1]))) as fd:
    subprocess.Popen(["sleep", sys.argv[2]], pass_fds=(fd,), stdout=subprocess.DEVNULL)
    os._exit(0)
"""


def test_a_worker_whose_launcher_was_killed_is_waited_for(make_run):
    run = make_run("bot", phase="training")
    subprocess.run([sys.executable, "-c", ORPHAN, str(run.root), "1.5"], check=True)
    with pytest.raises(InputError, match="another process"), run_lock(run):
        pass
    lines = []
    with wait_for_lock(run, lines.append) as fd:
        assert fd > 0
    assert lines == ["waiting for an earlier process of this run, which is still saving its state"]


ZOMBIE = """
import subprocess, sys
holder = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2], "1.5"])
print(holder.pid, flush=True)
sys.stdin.read()  # does not reap it
"""


def test_a_launcher_that_was_killed_but_not_reaped_is_not_running(make_run):
    """Its parent, such as a container's first process that reaps nothing, keeps it as a zombie."""
    run = make_run("bot", phase="training")
    parent = subprocess.Popen(
        [sys.executable, "-c", ZOMBIE, ORPHAN, str(run.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    stat = Path(f"/proc/{parent.stdout.readline().strip()}/stat")
    wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", processes=[parent])
    lines = []
    with wait_for_lock(run, lines.append):
        assert lines == ["waiting for an earlier process of this run, which is still saving its state"]
    parent.communicate("")


def test_a_pid_that_another_process_has_now_is_not_the_launcher(make_run):
    run = make_run("bot", phase="training")
    holder = subprocess.Popen([sys.executable, "-c", ORPHAN, str(run.root), "1.5"])
    holder.wait()
    run.lock.write_text(f"{os.getppid()}\n")  # a process that is running
    os.utime(run.lock, (1, 1))  # but had not started when the lock was taken
    with wait_for_lock(run, print) as fd:
        assert fd > 0


def test_a_running_launcher_is_not_waited_for(make_run):
    run = make_run("bot", phase="training")
    with (
        run_lock(run),
        pytest.raises(InputError, match="another process is working on this run"),
        wait_for_lock(run, print),
    ):
        pass


def test_a_path_that_cannot_be_locked_is_not_waited_for(tmp_path):
    (tmp_path / "file").write_text("999999")
    with pytest.raises(InputError, match="cannot be locked"), wait_for_lock(RunDir(tmp_path / "file"), print):
        pass


def test_the_next_attempt_number_considers_status_fence_logs_and_events(make_run):
    run = make_run("bot", phase="failed")
    assert next_attempt(run) == 2
    run.log(4, 0).write_text("a worker that exited before it could write an event")
    assert next_attempt(run) == 5
    log = EventLog(run.events)
    log.write(an_event("start", attempt=7, step=0, world_size=1, pid=1, host="here", resumed_from=None))
    assert next_attempt(run) == 8
    run.status.unlink()
    assert next_attempt(run) == 8


def test_a_missing_or_damaged_plan_is_reported(make_run):
    run = make_run("bot")
    assert stored_plan(run).recipe.name == "bot"
    run.plan.write_text(run.plan.read_text().replace('"total_steps"', '"steps_in_all"'))
    with pytest.raises(InputError, match=r"damaged or from another version \(2 invalid fields"):
        stored_plan(run)
    run.plan.unlink()
    with pytest.raises(InputError, match="never started"):
        stored_plan(run)


@pytest.mark.parametrize(
    ("phase", "finished"), [("done", True), ("failed", False), ("preempted", False), ("training", False)]
)
def test_a_run_is_finished_according_to_status_and_events(make_run, phase, finished):
    run = make_run("bot", phase=phase)
    assert is_finished(run) is finished
    run.status.unlink()
    assert is_finished(run) is finished  # the events alone
    Status("exporting", attempt=2).write(run.status)
    assert not is_finished(run)

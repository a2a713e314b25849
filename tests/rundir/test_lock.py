"""The lock of a run directory, with real processes."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_for
from tunesmith.errors import ExitCode, InputError
from tunesmith.rundir.lock import run_lock
from tunesmith.rundir.paths import RunDir

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from tunesmith.rundir.lock import run_lock
from tunesmith.rundir.paths import RunDir
with run_lock(RunDir(Path(sys.argv[1]))) as fd:
    if sys.argv[2] == "inherit":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[fd])
    else:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """holder(mode) starts a process that holds the lock of tmp_path/run and its child: (process, pid of the child)."""
    children = []

    def start(mode: str):
        arguments = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), mode]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        children.append((process, child))
        return process, child

    yield start
    for process, child in children:
        process.kill()
        process.wait()
        process.stdout.close()
        if Path(f"/proc/{child}").exists():
            os.kill(child, signal.SIGKILL)


def is_free(run: RunDir) -> bool:
    try:
        with run_lock(run):
            return True
    except InputError:
        return False


def wait_until_free(run: RunDir) -> bool:
    return wait_for(lambda: is_free(run))


def test_a_second_process_is_rejected_with_the_pid_of_the_first(tmp_path, holder):
    process, _ = holder("alone")
    run = RunDir(tmp_path / "run")
    with pytest.raises(InputError) as caught, run_lock(run):
        pass
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert f"(pid {process.pid})" in caught.value.what
    assert caught.value.where == str(run.root)
    assert "tunesmith status" in str(caught.value.remedy)


def test_the_lock_of_a_killed_process_is_released(tmp_path, holder):
    process, _ = holder("alone")
    process.kill()
    assert wait_until_free(RunDir(tmp_path / "run"))


def test_a_child_that_inherited_the_lock_keeps_it_if_the_launcher_is_killed(tmp_path, holder):
    process, child = holder("inherit")
    process.kill()
    process.wait()
    assert not is_free(RunDir(tmp_path / "run"))
    os.kill(child, signal.SIGKILL)
    assert wait_until_free(RunDir(tmp_path / "run"))


def test_the_lock_is_released_after_the_block_and_after_an_error(tmp_path):
    run = RunDir(tmp_path / "run")

    def fail_inside():
        with run_lock(run):
            assert not is_free(run)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert is_free(run)
    assert run.lock.read_text() == f"{os.getpid()}\n"


def test_locking_a_file_raises_an_error_that_names_it(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError) as caught, run_lock(RunDir(tmp_path / "run")):
        pass
    assert str(tmp_path / "run") in str(caught.value)
    assert "--run-dir" in str(caught.value.remedy)


@pytest.fixture
def no_files_left():
    """No further file can be opened, as with the limit `ulimit -n`."""
    free = os.dup(0)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("no_files_left")
def test_too_many_open_files_is_not_blamed_on_the_directory(tmp_path):
    with pytest.raises(InputError, match="Too many open files") as caught, run_lock(RunDir(tmp_path / "run")):
        pass
    assert "ulimit -n" in str(caught.value.remedy)
    assert "--run-dir" not in str(caught.value.remedy)

"""The local back end with small scripts as workers: start, stop requests, and exits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.event_lines import an_event, event_lines
from tests.waiting import wait_for
from tunesmith.errors import ExitCode, InputError, RunFault
from tunesmith.launcher.backends import local
from tunesmith.launcher.exit_status import ending_of, log_tail
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.planning.world import World
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.lock import run_lock
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, read_status

LISTENING = """
import os, signal, sys, threading, time
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1] + "/stopped", "a").write("x"), stop.set()))
signal.signal(signal.SIGINT, signal.SIG_IGN)
open(sys.argv[1] + "/ready", "w").close()
"""


@pytest.fixture
def start(tmp_path, monkeypatch, a_recipe, a_model, some_data):
    """start(source code of a worker, watch, world_size) -> Ending; the run is tmp_path/run."""
    run = RunDir(tmp_path / "run")
    run.create()

    def make(source: str, watch=lambda: None, world_size: int = 1):
        (tmp_path / "fake_worker.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(local, "WORKER", "fake_worker")
        hardware = Hardware(4, "", 64 << 30, "", frozenset())
        plan = make_plan(a_recipe(), a_model(), some_data(), hardware, world=World(world_size, world_size))
        with run_lock(run) as fd:
            return local.run_local(run, plan, 1, fd, watch)

    make.run = run
    return make


def test_a_worker_gets_its_environment_and_its_output_is_logged(start):
    source = """
import os, sys
print(os.getsid(0) == os.getpid(), sys.argv[2:], sys.path[0].endswith(".zip"))
print(*[os.environ[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "TUNESMITH_PARENT_PIPE")])
"""
    ending = start(source)
    assert (ending.exit_code, ending.error) == (ExitCode.DONE, None)
    first, second = start.run.log(1).read_text().splitlines()
    assert first.startswith("True ['--attempt', '1']")
    assert second == "0 0 1 4 1"


def test_several_workers_can_connect(start):
    source = """
import os, socket, time
rank, address = int(os.environ["RANK"]), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank == 0:
    with socket.create_server(address) as server:
        connection, _ = server.accept()
        assert connection.recv(3) == b"one"
else:
    for _ in range(2000):
        try:
            socket.create_connection(address).send(b"one")
            break
        except OSError:
            time.sleep(0.05)
"""
    assert start(source, world_size=2).exit_code == ExitCode.DONE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_stop_signal_is_forwarded_to_the_worker_once(start, number):
    """A second signal has no effect, and Ctrl-C does not reach the worker."""
    ready, before = start.run.root / "ready", signal.getsignal(number)
    sent = []

    def watch():
        if ready.is_file() and len(sent) < 2:
            sent.append(number)
            os.kill(os.getpid(), number)
            (start.run.root / f"signal{len(sent)}").touch()

    until_twice = "stop.wait(300)\nwhile not os.path.exists(sys.argv[1] + '/signal2'): time.sleep(0.02)\nsys.exit(75)"
    ending = start(LISTENING + until_twice, watch)
    assert ending.exit_code == ExitCode.PREEMPTED
    assert len(sent) == 2
    assert (start.run.root / "stopped").read_text() == "x"
    assert signal.getsignal(number) == before  # the launcher's handlers are removed after the run


def test_a_worker_stopped_before_it_handles_signals_is_preempted(start):
    ended = start("import os, time; time.sleep(300)", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert ended.exit_code == ExitCode.PREEMPTED
    status = read_status(start.run.status)
    assert status is not None
    assert (status.phase, status.exit_code) == ("preempted", 75)


def test_the_pipe_closes_with_the_launcher_and_the_worker_keeps_the_lock(tmp_path):
    """After kill -9 of the launcher, the pipe of the worker closes, and the worker holds the lock until it exits."""
    run = RunDir(tmp_path / "run")
    run.create()
    (tmp_path / "fake_worker.py").write_text(
        "import os, sys, time\nopen(sys.argv[1] + '/ready', 'w').close()\n"
        "sys.stdin.buffer.read()\nwhile not os.path.exists(sys.argv[1] + '/go'): time.sleep(0.02)\n"
        "open(sys.argv[1] + '/saved', 'w').close()\n"
    )
    launcher = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from types import SimpleNamespace
from tunesmith.launcher.backends import local
from tunesmith.rundir.lock import run_lock
from tunesmith.rundir.paths import RunDir
local.WORKER = "fake_worker"
run = RunDir(Path({str(run.root)!r}))
plan = SimpleNamespace(compute=SimpleNamespace(world_size=1, threads_per_rank=1))
with run_lock(run) as fd:
    local.run_local(run, plan, 1, fd, lambda: None)
"""
    process = subprocess.Popen([sys.executable, "-c", launcher], env={**os.environ, "PYTHONPATH": str(tmp_path)})
    wait_for((run.root / "ready").exists)
    process.kill()
    process.wait()
    assert not (run.root / "saved").exists()
    with pytest.raises(InputError, match="another process is working on this run"), run_lock(run):
        pass
    (run.root / "go").touch()
    wait_for((run.root / "saved").exists)

    def is_free() -> bool:
        try:
            with run_lock(run):
                return True
        except InputError:
            return False

    wait_for(is_free)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed (SIGKILL)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with a segmentation fault (SIGSEGV)"),
        ("import os; os.abort()", "SIGABRT"),
        ("import os; os._exit(7)", "exited with code 7 without reporting an error"),
        ("import os; os._exit(1)", "exited with code 1 without reporting an error"),
        ("print('DefaultCPUAllocator: can\\'t allocate memory'); import sys; sys.exit(1)", "ran out of memory"),
        ("raise MemoryError", "ran out of memory"),
    ],
)
def test_the_cause_of_a_worker_failure_is_reported_and_recorded(start, source, expected):
    ending = start(f"print('the last line', flush=True)\n{source}")
    assert ending.exit_code == ExitCode.FAULT
    assert ending.error is not None
    message = str(ending.error)
    assert expected in message
    assert str(start.run.log(1)) in message
    assert "| the last line" in message
    assert f"`tunesmith resume {start.run.root}` continues from the start" in message
    (error,) = event_lines(start.run.events, "error")
    assert expected in error["what"]
    (end,) = event_lines(start.run.events, "end")
    assert (end["outcome"], end["exit_code"]) == ("failed", 1)
    status = read_status(start.run.status)
    assert status is not None
    assert status.phase == "failed"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_named_if_the_worker_cannot_write_the_reason(small_disk):
    run = RunDir(small_disk / "run")
    run.logs.mkdir(parents=True)
    written = subprocess.run(
        ["dd", "if=/dev/zero", f"of={small_disk}/other", "bs=4096"], capture_output=True, text=True
    )
    assert "No space left" in written.stderr
    ending = ending_of(run, 1, [1], stop_requested=False, oom_kills=0)
    assert ending.exit_code == ExitCode.FAULT
    assert ending.error is not None
    assert "the disk is full" in ending.error.what
    assert ending.error.where == f"{run.root} (0 bytes free)"
    assert "free space there" in str(ending.error.remedy)


def test_an_oom_kill_is_reported_as_out_of_memory(tmp_path):
    run = RunDir(tmp_path / "run")
    run.create()
    (run.checkpoints / "step-00000020").mkdir()
    ending = ending_of(run, 1, [-9], stop_requested=False, oom_kills=1)
    message = str(ending.error)
    assert "ran out of memory: the kernel killed 1 process" in message
    assert "the checkpoint of step 20" in message
    assert "micro_batch_size" in message


@pytest.mark.parametrize("stop_requested", [False, True])
def test_lost_workers_are_restarted_unless_a_stop_was_requested(tmp_path, stop_requested):
    run = RunDir(tmp_path / "run")
    run.create()
    ending = ending_of(run, 1, [1, -9], first_failed=[(1, -9)], stop_requested=stop_requested, oom_kills=0)
    assert "rank 1 was killed" in str(ending.error)
    assert ending.lost is not stop_requested


@pytest.mark.parametrize(("code", "kind"), [(1, RunFault), (2, InputError)])
def test_an_error_recorded_by_the_worker_is_reported_unchanged(tmp_path, code, kind):
    run = RunDir(tmp_path / "run")
    run.create()
    log = EventLog(run.events)
    log.write(an_event("error", what="of the first attempt", where="there", remedy="nothing"))
    log.write(an_event("error", what="no step changed the weights", where="5 steps", remedy="look at the rows"))
    log.write(an_event("end", outcome="failed", step=5, exit_code=code, seconds=1.0))
    Status("failed", attempt=2, exit_code=code).write(run.status)
    ending = ending_of(run, 2, [code], stop_requested=False, oom_kills=0)
    assert ending.exit_code == code
    assert isinstance(ending.error, kind)
    assert (ending.error.what, ending.error.where) == ("no step changed the weights", "5 steps")
    assert len(list(event_lines(run.events, "end"))) == 1


@pytest.mark.parametrize(("code", "stop_requested"), [("out_of_memory", False), ("out_of_memory", True), (None, False)])
def test_memory_that_ran_out_restarts_the_run_unless_a_stop_was_requested(tmp_path, code, stop_requested):
    run = RunDir(tmp_path / "run")
    run.create()
    record_end(run, 1, RunFault("memory ran out on rank 1", code=code))
    failed = [(1, 1)] if code is None else [(0, -9), (1, 1)]  # rank 0 waited for rank 1 in a collective
    ending = ending_of(run, 1, [-9, 1], first_failed=failed, stop_requested=stop_requested, oom_kills=0)
    assert str(ending.error) == "memory ran out on rank 1"
    assert ending.out_of_memory is (code is not None and not stop_requested)
    assert not ending.lost


def test_an_error_of_an_earlier_attempt_is_ignored(tmp_path):
    run = RunDir(tmp_path / "run")
    run.create()
    EventLog(run.events).write(an_event("error", what="of the first attempt", where="there", remedy="nothing"))
    Status("failed", attempt=1, exit_code=1).write(run.status)
    ending = ending_of(run, 2, [1], stop_requested=False, oom_kills=0)
    assert "without reporting an error" in str(ending.error)


def test_when_one_worker_fails_the_others_are_terminated_and_the_first_failure_is_reported(start):
    source = """
import os, sys, time, signal
if os.environ["RANK"] == "1":
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGSEGV)
time.sleep(600)
"""
    started = time.monotonic()
    ending = start(source, world_size=2)
    assert time.monotonic() - started < 300
    assert "the worker of rank 1 crashed" in str(ending.error)


def test_an_exception_in_the_launcher_lets_the_worker_save(start):
    def watch():
        if (start.run.root / "ready").is_file():
            raise ZeroDivisionError

    source = "import sys\nopen(sys.argv[1] + '/ready', 'w').close()\nsys.stdin.buffer.read()\n"
    with pytest.raises(ZeroDivisionError):
        start(source + "open(sys.argv[1] + '/saved', 'w').close()", watch)
    assert (start.run.root / "saved").is_file()


def test_the_tail_of_a_log_is_short_and_never_raises(tmp_path):
    path = tmp_path / "log"
    assert log_tail(path) == []
    path.write_bytes(b"\xff\xfe bad\n" + b"x" * 100_000 + b"\n\n" + b"".join(b"%d\n" % n for n in range(20)))
    assert log_tail(path, 3) == ["17", "18", "19"]
    assert all(len(line) <= 200 for line in log_tail(path, 30))

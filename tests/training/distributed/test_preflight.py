"""Two real ranks that do not fit together, or do not find each other, end soon, with one message and never with 0."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tests.training.engine.zero_ranks import Setup, plan_of
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status
from tunesmith.training.distributed.preflight import CLOCK_SLACK_S

HOST = socket.gethostname()


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    plan_of(Setup(), tmp_path / "no-model", world_size=2).write(run.plan)
    return run


@dataclass
class Ended:
    """Exit codes and logs by rank, and how long the slowest took."""

    codes: list[int]
    logs: list[str]
    seconds: float


def start(places: dict[int, Path], port: int, timeout_s: float = 15, apart_s: float = 0, **faults: str) -> Ended:
    """The worker of each rank in its directory. apart_s: between two starts. faults: `rank1="<stage>=<value>"`."""
    started = time.monotonic()
    processes = []
    for rank, place in places.items():
        time.sleep(apart_s if processes else 0)
        own = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TUNESMITH_START_TIMEOUT_S": str(timeout_s),
        }
        if fault := faults.get(f"rank{rank}"):
            own["TUNESMITH_FAULT"] = fault
        call = [sys.executable, "-P", "-m", "tunesmith.training.worker", str(place)]
        processes.append(
            subprocess.Popen(
                call, env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    logs = [process.communicate(timeout=60)[0] for process in processes]
    return Ended([process.returncode for process in processes], logs, time.monotonic() - started)


def require_told(run: RunDir, ended: Ended, code: int, *words: str) -> None:
    """Both ranks say the same, at the end of their logs; the run directory tells it once."""
    assert ended.codes == [code] * len(ended.codes), "\n".join(ended.logs)
    for log in ended.logs:
        assert "Traceback" not in log
        assert "what to do:" in log.strip().splitlines()[-1]
        assert all(word in log for word in words), log
    (error,) = event_lines(run.events, "error")
    assert all(word in f"{error['what']} {error['where']}" for word in words)
    status = read_status(run.status)
    assert status is not None
    assert (status.phase, status.exit_code) == ("failed", code)
    assert not run.nonce.exists()
    assert not list(event_lines(run.events, "step"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("preflight.torch=9.9.9", ("torch 9.9.9 at rank 1",)),
        ("preflight.plan=another", ("plan.json differs", "rank 1")),
        ("preflight.clock=-60", ("the clock at rank 1", "s behind rank 0's")),
        ("preflight.clock=60", ("the clock at rank 1", "s ahead of rank 0's")),
    ],
)
def test_what_differs_at_one_rank_is_named_with_rank_and_host(run, free_port, fault, words):
    ended = start({0: run.root, 1: run.root}, free_port, rank1=fault)
    require_told(run, ended, 2, HOST, *words)
    stage, _, value = fault.partition("=")
    if stage == "preflight.clock":
        (told_s,) = re.findall(r"is (\d+) s (?:behind|ahead of)", ended.logs[0])
        # On a busy machine time passes between the readings of the two clocks, at most as much as both ranks ran for.
        # Printed are whole seconds.
        assert abs(int(told_s) - abs(int(value))) <= ended.seconds + 0.5


def test_a_rank_that_starts_late_is_not_taken_for_one_with_a_wrong_clock(run, free_port):
    """The check after that of the clocks is the one that ends it."""
    ranks = {0: run.root, 1: run.root}
    ended = start(ranks, free_port, timeout_s=40, apart_s=CLOCK_SLACK_S + 2, rank0="preflight.free_bytes=0")
    require_told(run, ended, 2, "no room for the checkpoints")


@pytest.mark.parametrize("how", ["missing", "another"])
def test_a_run_directory_that_is_not_shared_is_named(run, free_port, tmp_path, how):
    other = tmp_path / "elsewhere" / "run"
    if how == "another":
        shutil.copytree(run.root, other)
    ended = start({0: run.root, 1: other}, free_port)
    require_told(run, ended, 2, HOST, "is not shared by all hosts", str(other), "rank 1")
    assert how == "another" or not other.exists()


def test_a_full_disk_is_told_before_the_first_step(run, free_port):
    ended = start({0: run.root, 1: run.root}, free_port, rank0="preflight.free_bytes=0")
    require_told(run, ended, 2, "no room for the checkpoints", "rank 0", HOST)


def test_a_blocked_port_ends_both_ranks(run):
    """Something else listens there, takes connections and never answers."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ended = start({0: run.root, 1: run.root}, other.getsockname()[1])
    assert ended.codes == [1, 1], ended.logs
    assert ended.seconds < 60
    assert f"rank 0 on {HOST} cannot open port" in ended.logs[0]
    assert f"rank 1 on {HOST} waited" in ended.logs[1]
    (error,) = event_lines(run.events, "error")
    assert "another process uses it" in error["what"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_never_comes_is_named_by_the_other(run, free_port, rank):
    ended = start({1 - rank: run.root}, free_port, timeout_s=6)
    assert ended.seconds < 60
    require_told(run, ended, 1, f"rank {1 - rank} on {HOST} waited 6 s in vain for rank {rank}")


def test_a_rank_that_dies_in_the_middle_does_not_hold_the_other(run, free_port):
    ended = start({0: run.root, 1: run.root}, free_port, rank0="preflight.ready=kill")
    assert ended.codes == [-9, 1]
    assert f"rank 1 on {HOST}" in ended.logs[1]

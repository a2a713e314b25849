"""Two real ranks that differ, or cannot connect, exit soon with the same error and a nonzero exit code."""

import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tests.rank_processes import rank_environment
from tests.training.engine.zero_ranks import Setup, plan_of
from tests.waiting import LIMIT_S
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


@pytest.fixture
def start(warm_python, free_port):
    """start(directories, port=..., timeout_s=..., delay_s=..., **faults) -> Outcome: see `run_ranks`."""
    return partial(run_ranks, warm_python, port=free_port)


@dataclass
class Outcome:
    """Exit codes and logs by rank, and the duration of the slowest."""

    codes: list[int]
    logs: list[str]
    seconds: float


def run_ranks(
    python: str, directories: dict[int, Path], port: int, timeout_s: float = 60, delay_s: float = 0, **faults: str
) -> Outcome:
    """Run the worker of each rank in its directory. delay_s: between two starts. faults: `rank1="<stage>=<value>"`."""
    started = time.monotonic()
    processes = []
    for rank, directory in directories.items():
        time.sleep(delay_s if processes else 0)
        environment = rank_environment(rank, 2, port) | {"TUNESMITH_START_TIMEOUT_S": str(timeout_s)}
        if fault := faults.get(f"rank{rank}"):
            environment["TUNESMITH_FAULT"] = fault
        call = [python, "-P", "-m", "tunesmith.training.worker", str(directory)]
        processes.append(
            subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    logs = [process.communicate(timeout=300)[0] for process in processes]
    return Outcome([process.returncode for process in processes], logs, time.monotonic() - started)


def require_error(run: RunDir, outcome: Outcome, code: int, *texts: str) -> None:
    """Both ranks print the same error at the end of their logs; the run directory records it once."""
    assert outcome.codes == [code] * len(outcome.codes), "\n".join(outcome.logs)
    for log in outcome.logs:
        assert "Traceback" not in log
        assert "what to do:" in log.strip().splitlines()[-1]
        assert all(text in log for text in texts), log
    (error,) = event_lines(run.events, "error")
    assert all(text in f"{error['what']} {error['where']}" for text in texts)
    status = read_status(run.status)
    assert status is not None
    assert (status.phase, status.exit_code) == ("failed", code)
    assert not run.nonce.exists()
    assert not list(event_lines(run.events, "step"))


@pytest.mark.parametrize(
    ("fault", "texts"),
    [
        ("preflight.torch=9.9.9", ("torch 9.9.9 at rank 1",)),
        ("preflight.plan=another", ("plan.json differs", "rank 1")),
        ("preflight.clock=-60", ("the clock at rank 1", "s behind rank 0's")),
        ("preflight.clock=60", ("the clock at rank 1", "s ahead of rank 0's")),
    ],
)
def test_a_difference_is_reported_with_rank_and_host(run, start, fault, texts):
    outcome = start({0: run.root, 1: run.root}, rank1=fault)
    require_error(run, outcome, 2, HOST, *texts)
    stage, _, value = fault.partition("=")
    if stage == "preflight.clock":
        (reported_s,) = re.findall(r"is (\d+) s (?:behind|ahead of)", outcome.logs[0])
        # On a busy machine time passes between reading the two clocks, at most the duration of both ranks. Whole
        # seconds are printed.
        assert abs(int(reported_s) - abs(int(value))) <= outcome.seconds + 0.5


def test_a_rank_that_starts_late_does_not_count_as_clock_skew(run, start):
    """The clock check passes; the check after it, of the disk space, fails."""
    ranks = {0: run.root, 1: run.root}
    outcome = start(ranks, timeout_s=120, delay_s=CLOCK_SLACK_S + 2, rank0="preflight.free_bytes=0")
    require_error(run, outcome, 2, "not enough disk space for the checkpoints")


@pytest.mark.parametrize("how", ["missing", "another"])
def test_a_run_directory_that_is_not_shared_is_reported(run, start, tmp_path, how):
    other = tmp_path / "elsewhere" / "run"
    if how == "another":
        shutil.copytree(run.root, other)
    outcome = start({0: run.root, 1: other})
    require_error(run, outcome, 2, HOST, "is not shared by all hosts", str(other), "rank 1")
    assert how == "another" or not other.exists()


def test_insufficient_disk_space_is_reported_before_the_first_step(run, start):
    outcome = start({0: run.root, 1: run.root}, rank0="preflight.free_bytes=0")
    require_error(run, outcome, 2, "not enough disk space for the checkpoints", "rank 0", HOST)


def test_a_blocked_port_ends_both_ranks(run, start):
    """Another process listens on the port, accepts connections and never answers."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        outcome = start({0: run.root, 1: run.root}, port=other.getsockname()[1], timeout_s=15)
    assert outcome.codes == [1, 1], outcome.logs
    assert outcome.seconds < LIMIT_S
    assert f"rank 0 on {HOST} cannot open port" in outcome.logs[0]
    assert f"rank 1 on {HOST} timed out after" in outcome.logs[1]
    (error,) = event_lines(run.events, "error")
    assert "another process uses it" in error["what"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_rank_is_named_by_the_other(run, start, rank):
    outcome = start({1 - rank: run.root}, timeout_s=6)
    assert outcome.seconds < LIMIT_S
    require_error(run, outcome, 1, f"rank {1 - rank} on {HOST} timed out after 6 s waiting for rank {rank}")


def test_a_rank_killed_during_preflight_does_not_block_the_other(run, start):
    outcome = start({0: run.root, 1: run.root}, rank0="preflight.ready=kill")
    assert outcome.codes == [-9, 1]
    assert f"rank 1 on {HOST}" in outcome.logs[1]

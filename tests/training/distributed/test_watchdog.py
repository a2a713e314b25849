"""The watchdog's decisions and cost; whole runs that hang are in tests/integration/test_hangs.py."""

import json
import os
import time

import pytest

from tunesmith.rundir.paths import RunDir
from tunesmith.training.distributed import watchdog
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.distributed.watchdog import BEAT_S, Watchdog


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test advances."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(watchdog.time, "monotonic", clock.monotonic)
    return clock


def dogs_of(run: RunDir, world_size: int, timeout_s: float = 5.0) -> list[Watchdog]:
    return [Watchdog(run, Ranks(rank, rank, world_size), 1, timeout_s) for rank in range(world_size)]


def measure_a_step(dogs: list[Watchdog], clock, seconds: float) -> None:
    for stage in ("data", "forward", "update", ""):
        for dog in dogs:
            dog.enter(stage, 1)
        clock.now += seconds


def watch(dogs: list[Watchdog], clock, seconds: float, silent: tuple[int, ...] = (), watcher: int = 0):
    """The first fault that the watcher reports, and after how many seconds; None without a fault."""
    for passed in range(1, int(seconds) + 1):
        clock.now += BEAT_S
        for rank, dog in enumerate(dogs):
            if rank not in silent:
                dog.beat()
        if (fault := dogs[watcher].check()) is not None:
            return passed, fault
    return None


def test_the_rank_blocked_in_data_is_named_rather_than_the_waiting_ones(tmp_path, clock):
    dogs = dogs_of(RunDir(tmp_path), 3)
    measure_a_step(dogs, clock, 0.1)
    for rank, dog in enumerate(dogs):
        dog.enter("data" if rank == 1 else "forward", 2)
    report = watch(dogs, clock, 60)
    assert report is not None
    passed, fault = report
    assert 5 <= passed <= 8
    assert "rank 1 on" in fault.what
    assert "hangs reading data, step 2" in fault.what
    assert "test_watchdog.py" in str(fault.where)


@pytest.mark.parametrize(("stopped", "watcher"), [(1, 0), (0, 1)])
def test_a_rank_without_heartbeat_is_named_in_any_stage(tmp_path, clock, stopped, watcher):
    dogs = dogs_of(RunDir(tmp_path), 2)
    assert watch(dogs, clock, 60, watcher=watcher) is None, "loading has no time limit"
    report = watch(dogs, clock, 60, silent=(stopped,), watcher=watcher)
    assert report is not None
    passed, fault = report
    assert 5 <= passed <= 8
    assert f"rank {stopped} on" in fault.what
    assert "no heartbeat" in fault.what


def test_the_limit_of_a_stage_is_ten_times_its_longest_duration(tmp_path, clock):
    dogs = dogs_of(RunDir(tmp_path), 2)
    for dog in dogs:
        dog.enter("data", 1)
    assert watch(dogs, clock, 600) is None
    measure_a_step(dogs, clock, 4.0)
    for dog in dogs:
        dog.enter("forward", 2)
    report = watch(dogs, clock, 100)
    assert report is not None
    assert 40 <= report[0] <= 43
    assert "in forward and backward" in report[1].what


def test_a_suspended_watcher_reports_no_hang(tmp_path, clock):
    dogs = dogs_of(RunDir(tmp_path), 2)
    assert watch(dogs, clock, 2) is None
    clock.now += 3600
    assert dogs[0].check() is None
    assert watch(dogs, clock, 30) is None


def test_heartbeats_of_an_earlier_attempt_and_partial_ones_are_ignored(tmp_path, clock):
    run = RunDir(tmp_path)
    dogs = dogs_of(run, 2)
    dogs[1].beat()
    path = run.beats / "rank-00001.json"
    assert len(path.read_bytes()) == 4096
    old = json.loads(path.read_text())
    path.write_text(json.dumps({**old, "attempt": 0}))
    assert dogs[0]._read(1) is None
    path.write_text('{"attempt": 1, ')
    assert dogs[0]._read(1) is None


def test_watching_eight_ranks_costs_less_than_one_percent_of_a_cpu(tmp_path):
    dogs = dogs_of(RunDir(tmp_path), 8)
    for dog in dogs:
        dog.beat()
    rounds = 50
    started = time.thread_time()
    for _ in range(rounds):
        dogs[0].beat()
        dogs[0].check()
    a_second = (time.thread_time() - started) / rounds
    started = time.thread_time()
    for step in range(1000):
        dogs[0].enter("data", step)
    a_mark = (time.thread_time() - started) / 1000
    assert os.listdir(tmp_path / "beats")
    assert a_second < 0.01
    assert 4 * a_mark < 0.0001

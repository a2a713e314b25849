"""The watchdog's decisions and cost; whole runs that hang are in tests/integration/test_hangs.py."""

import json
import os
import time
from contextlib import ExitStack

import pytest

from tunesmith.progress import Progress
from tunesmith.rundir.paths import RunDir
from tunesmith.training.distributed import heartbeat, watchdog
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.distributed.stages import COARSE, STEP, Stage
from tunesmith.training.distributed.watchdog import BEAT_S, COARSE_FACTOR, Watchdog

HANG_S, STAGE_S = 5.0, 100.0
FINE = [stage for stage in Stage if stage not in COARSE | STEP]


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


class Group:
    """The watchdogs of all ranks, in one process. waiting: ranks whose stack shows a collective. collectives: those in
    the flight recorders of ranks."""

    def __init__(self, directory, world_size: int, clock, monkeypatch):
        self.clock, self.stages = clock, ExitStack()
        self.progress = [Progress() for _ in range(world_size)]
        self.dogs = [
            Watchdog(
                RunDir(directory),
                Ranks(rank, rank, world_size),
                1,
                hang_timeout_s=HANG_S,
                stage_timeout_s=STAGE_S,
                progress=self.progress[rank],
            )
            for rank in range(world_size)
        ]
        self.waiting: set[int] = set()
        self.collectives: dict[int, str] = {}
        self.beating = 0
        monkeypatch.setattr(watchdog, "stack_of", self._stack)
        monkeypatch.setattr(watchdog, "pending_collective", lambda: self.collectives.get(self.beating, ""))

    def _stack(self, thread: int) -> list[str]:
        own = heartbeat.stack_of(thread)
        return ["torch/distributed/distributed_c10d.py:3 barrier", *own] if self.beating in self.waiting else own

    def enter(self, stage: Stage, step: int, *ranks: int) -> None:
        for rank in ranks or range(len(self.dogs)):
            self.stages.enter_context(self.dogs[rank].stage(stage, step))

    def measure_a_step(self, seconds: float) -> None:
        for stage in (Stage.DATA, Stage.FORWARD, Stage.UPDATE):
            with ExitStack() as stages:
                for dog in self.dogs:
                    stages.enter_context(dog.stage(stage, 1))
                self.clock.now += seconds

    def watch(self, seconds: float, *, silent: tuple[int, ...] = (), progressing: tuple[int, ...] = (), by: int = 0):
        """The first fault that a rank reports, and after how many seconds; None without a fault."""
        for passed in range(1, int(seconds) + 1):
            self.clock.now += BEAT_S
            for rank, dog in enumerate(self.dogs):
                if rank in progressing:
                    self.progress[rank].advance()
                if rank not in silent:
                    self.beating = rank
                    dog.beat()
            if (fault := self.dogs[by].check()) is not None:
                return passed, fault
        return None


@pytest.fixture
def group(tmp_path, clock, monkeypatch):
    """group(world_size) -> the watchdogs of a run."""
    return lambda world_size: Group(tmp_path, world_size, clock, monkeypatch)


def test_the_rank_blocked_in_data_is_named_rather_than_the_waiting_ones(group):
    ranks = group(3)
    ranks.measure_a_step(0.1)
    ranks.enter(Stage.DATA, 2, 1)
    ranks.enter(Stage.FORWARD, 2, 0, 2)
    passed, fault = ranks.watch(60)
    assert 5 <= passed <= 8
    assert "rank 1 on" in fault.what
    assert "hangs reading data, step 2" in fault.what
    assert "test_watchdog.py" in str(fault.where)


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("hung", [0, 1])
def test_a_hang_is_named_in_every_stage_within_its_limit(group, stage, hung):
    ranks = group(2)
    ranks.waiting = {1 - hung}
    ranks.enter(stage, 3)
    limit_s = HANG_S * (1 if stage in FINE else COARSE_FACTOR)
    passed, fault = ranks.watch(2 * limit_s, progressing=(1 - hung,))
    assert limit_s <= passed <= limit_s + 3
    assert f"rank {hung} on" in fault.what
    assert f"hangs {stage.description}, step 3: no progress for" in fault.what
    assert "stack, innermost frame first" in str(fault.where)


@pytest.mark.parametrize("stage", [Stage.LOADING, Stage.FORWARD, Stage.VALIDATION, Stage.EXPORT])
def test_ranks_wait_for_a_slow_rank_as_long_as_it_makes_progress(group, stage):
    ranks = group(3)
    ranks.enter(stage, 3)
    ranks.waiting = {0, 2}
    assert ranks.watch(STAGE_S - 10, progressing=(1,)) is None
    passed, fault = ranks.watch(20, progressing=(1,))
    assert 9 <= passed <= 13
    assert "rank 1 on" in fault.what
    assert "still not done after 101 s" in fault.what
    assert "higher stage_timeout_s" in str(fault.remedy)


def test_a_rank_that_stops_making_progress_is_named(group):
    ranks = group(2)
    ranks.enter(Stage.VALIDATION, 4)
    ranks.waiting = {0}
    assert ranks.watch(20, progressing=(1,)) is None
    passed, fault = ranks.watch(60)
    assert 10 <= passed <= 14, "a unit took a second, so the limit is ten"
    assert "rank 1 on" in fault.what


def test_collectives_on_gpus_are_known_from_the_flight_recorder(group):
    """Their ranks wait for the device: the stack shows no collective. The error says who is in which one."""
    ranks = group(3)
    ranks.measure_a_step(0.1)
    ranks.enter(Stage.FORWARD, 2)
    ranks.collectives = dict.fromkeys((0, 2), "nccl:all_reduce number 17 (Float [4096])")
    passed, fault = ranks.watch(60)
    assert 5 <= passed <= 8
    assert "rank 1 on" in fault.what
    assert "in nccl:all_reduce number 17 (Float [4096]): ranks 0, 2" in str(fault.where)


def test_ranks_that_wait_in_different_collectives_are_listed(group):
    ranks = group(2)
    ranks.measure_a_step(0.1)
    ranks.enter(Stage.FORWARD, 2)
    ranks.collectives = {0: "nccl:all_reduce number 17", 1: "nccl:broadcast number 16"}
    _, fault = ranks.watch(60)
    assert "in nccl:all_reduce number 17: rank 0" in str(fault.where)
    assert "in nccl:broadcast number 16: rank 1" in str(fault.where)


def test_ranks_in_different_collectives_are_named_together(group):
    ranks = group(2)
    ranks.enter(Stage.CHECKPOINT, 4, 0)
    ranks.enter(Stage.VALIDATION, 4, 1)
    ranks.waiting = {0, 1}
    passed, fault = ranks.watch(100)
    assert 0 <= passed - COARSE_FACTOR * HANG_S <= 3, "rank 0 is within its limit until then"
    assert "rank 1 on" in fault.what


@pytest.mark.parametrize(("stopped", "watcher", "extra_s"), [(1, 0, 0), (0, 1, 0), (1, 2, 15), (2, 3, 15)])
@pytest.mark.parametrize("stage", [Stage.START, Stage.VALIDATION])
def test_a_rank_without_heartbeat_is_named_in_any_stage(group, stage, stopped, watcher, extra_s):
    """Also if rank 0 is lost with it; rank 0 would be the first to report."""
    ranks = group(4)
    ranks.enter(stage, 0)
    everyone = (0, 1, 2, 3)
    assert ranks.watch(30, progressing=everyone, by=watcher) is None
    passed, fault = ranks.watch(60, silent=(stopped,), progressing=everyone, by=watcher)
    assert 5 <= passed - extra_s <= 8
    assert f"rank {stopped} on" in fault.what
    assert f"{stage.description} before its first step: no heartbeat" in fault.what


def test_a_rank_that_has_ended_is_not_missed(group):
    ranks = group(2)
    ranks.enter(Stage.FINISH, 4)
    assert ranks.watch(2) is None
    ranks.dogs[1].close()
    assert ranks.watch(20, silent=(1,)) is None
    assert "rank 0 on" in ranks.watch(40, silent=(1,))[1].what


def test_the_limit_of_a_stage_is_ten_times_its_longest_duration(group):
    ranks = group(2)
    ranks.measure_a_step(4.0)
    ranks.enter(Stage.FORWARD, 2)
    passed, fault = ranks.watch(100)
    assert 40 <= passed <= 43
    assert "in forward and backward" in fault.what


def test_after_an_inner_stage_a_rank_is_in_the_outer_one_again(group):
    ranks = group(1)
    (dog,) = ranks.dogs
    with dog.stage(Stage.TRAINING, 3):
        with dog.stage(Stage.DATA, 4):
            pass
        assert ranks.watch(2) is None
        beat = json.loads((dog._run.beats / "rank-00000.json").read_text())
    assert (beat["stage"], beat["step"]) == ("training", 4)


def test_a_suspended_watcher_reports_no_hang(group, clock):
    ranks = group(2)
    ranks.enter(Stage.VALIDATION, 1)
    assert ranks.watch(2) is None
    clock.now += 3600
    assert ranks.dogs[0].check() is None
    assert ranks.watch(30, progressing=(0, 1)) is None


def test_heartbeats_of_an_earlier_attempt_and_partial_ones_are_ignored(group, tmp_path):
    ranks = group(2)
    ranks.dogs[1].beat()
    path = RunDir(tmp_path).beats / "rank-00001.json"
    assert len(path.read_bytes()) == 4096
    old = json.loads(path.read_text())
    path.write_text(json.dumps({**old, "attempt": 0}))
    assert ranks.dogs[0]._read(1) is None
    path.write_text('{"attempt": 1, ')
    assert ranks.dogs[0]._read(1) is None


def test_watching_eight_ranks_costs_less_than_one_percent_of_a_cpu(tmp_path):
    limits = {"hang_timeout_s": HANG_S, "stage_timeout_s": STAGE_S}
    dogs = [Watchdog(RunDir(tmp_path), Ranks(rank, rank, 8), 1, **limits, progress=Progress()) for rank in range(8)]
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
        with dogs[0].stage(Stage.DATA, step):
            pass
    a_stage = (time.thread_time() - started) / 1000
    assert os.listdir(tmp_path / "beats")
    assert a_second < 0.01
    assert 3 * a_stage < 0.0001

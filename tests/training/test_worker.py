"""How a worker ends: its exit code, and what it records, on every rank."""

import errno
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tunesmith.errors import ExitCode
from tunesmith.rundir.fence import begin_attempt
from tunesmith.rundir.paths import RunDir
from tunesmith.training import worker
from tunesmith.training.distributed.interruption import Interruption
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.journal import Journal


class NoWatchdog:
    """In place of the watchdog, which ends the process of a run whose directory is gone."""

    def __init__(self, *_, **__):
        pass

    @contextmanager
    def watching(self):
        yield

    @contextmanager
    def stage(self, stage, step):
        yield

    def close(self) -> None:
        pass


@pytest.fixture
def end_with(trained, tmp_path, monkeypatch):
    """end_with(work, ranks) -> (exit code, run) of a rank whose run does this work."""
    monkeypatch.setattr(worker, "Watchdog", NoWatchdog)
    run = RunDir(tmp_path / "run")
    run.create()
    run = begin_attempt(run, 1)

    def end(work, ranks: Ranks):
        monkeypatch.setattr("tunesmith.training.run_rank.run_rank", lambda *_: work(run))
        journal = Journal(run, ranks, attempt=1, total_steps=1)
        return worker._run(run, trained.plan, ranks, journal, Interruption(), 1), run

    return end


def test_a_directory_that_is_lost_at_the_very_end_gives_an_error_without_a_traceback(end_with, capsys):
    def work(run: RunDir) -> str:
        shutil.rmtree(run.root)
        return "done"

    code, run = end_with(work, Ranks(0, 0, 1))
    assert code == ExitCode.FAULT
    error = capsys.readouterr().err
    assert "the run directory was deleted or renamed" in error
    assert "Traceback" not in error
    assert not run.root.exists()


def raising(error: Exception):
    def work(run: RunDir) -> str:
        raise error

    return work


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_the_operating_system_is_recorded_by_the_rank_that_has_it(end_with, rank):
    """Rank 0 would only record that it lost the connection."""
    full = OSError(errno.ENOSPC, "No space left on device", str(Path("/dev/full")))
    code, run = end_with(raising(full), Ranks(rank, rank, 2))
    assert code == ExitCode.FAULT
    (error,) = event_lines(run.events, "error")
    assert error["what"] == "the disk is full"
    assert f"rank {rank}, /dev/full" in error["where"]


def test_a_lost_connection_is_recorded_by_rank_0_alone(end_with):
    code, run = end_with(raising(RuntimeError("Connection closed by peer")), Ranks(1, 1, 2))
    assert code == ExitCode.FAULT
    assert list(event_lines(run.events, "error")) == []

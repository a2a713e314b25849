"""The inference process leaves cores to training runs of the same machine."""

import os
import subprocess
import sys
from itertools import count

import pytest

from tests.waiting import wait_for
from tunesmith.launcher.backends import local
from tunesmith.serving.engine.core_share import CHECK_S, SHARE, CoreShare, training_threads

WORKER = local.WORKER.encode()


@pytest.mark.parametrize(
    ("inference", "training", "cores", "shares"),
    [(2, 2, 2, True), (1, 2, 2, True), (2, 2, 4, False), (1, 1, 2, False), (2, 0, 1, False), (8, 1, 8, True)],
)
def test_pauses_only_where_training_needs_the_cores(inference, training, cores, shares):
    share = CoreShare(inference, cores, lambda: training)
    pause = share.pause_s(0.05)
    assert 0.05 / (0.05 + pause) == pytest.approx(SHARE if shares else 1.0)


def test_processes_are_listed_at_most_every_two_seconds():
    times, calls = count(0.0, CHECK_S / 4), []
    share = CoreShare(1, 1, lambda: calls.append(1) or len(calls) % 2, clock=lambda: next(times))
    pauses = [share.pause_s(1.0) > 0 for _ in range(12)]
    assert len(calls) == 3
    assert pauses == [True] * 4 + [False] * 4 + [True] * 4  # follows runs that end and start


def test_finds_the_workers_of_a_machine(tmp_path):
    def process(number, command, environ=None):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "cmdline").write_bytes(b"\0".join([*command, b""]))
        if environ is not None:
            (directory / "environ").write_bytes(b"\0".join([*environ, b""]))

    assert training_threads(tmp_path / "missing") == 0
    assert training_threads(tmp_path) == 0
    (tmp_path / "self").mkdir()
    process(1, [b"/sbin/init"], [b"OMP_NUM_THREADS=64"])
    process(2, [b"grep", WORKER + b".py"], [b"OMP_NUM_THREADS=64"])
    process(3, [b"python", b"-m", WORKER, b"runs/a"], [b"HOME=/", b"OMP_NUM_THREADS=3"])
    process(4, [b"python", b"-P", b"-m", WORKER, b"runs/b"], [b"HOME=/"])
    process(5, [b"python", b"-P", b"-m", WORKER, b"runs/b"], [b"OMP_NUM_THREADS=many"])
    process(6, [b"python", b"-P", b"-m", WORKER, b"runs/b"])  # ends while it is read
    process(7, [], [])  # a zombie
    assert training_threads(tmp_path) == 3 + 1 + 1


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the system does not list processes")
def test_a_real_process_is_found_until_it_ends():
    code = "import sys; sys.stdin.read()"
    before = training_threads()
    process = subprocess.Popen(
        [sys.executable, "-c", code, WORKER.decode()],
        stdin=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "5000"},
    )
    try:
        wait_for(lambda: training_threads() >= before + 5000 - 64, processes=[process])
    finally:
        process.communicate(b"")
    assert training_threads() < 5000

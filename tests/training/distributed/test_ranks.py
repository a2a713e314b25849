"""Timeouts of collectives and of long waits, and decisions of rank 0 for all ranks."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.waiting import LIMIT_S, wait_for

RANK = """
import pathlib, sys, time
from tunesmith.training.distributed import ranks
ranks.COLLECTIVE_TIMEOUT_S = 2.0
here, place = ranks.join_ranks("cpu"), pathlib.Path(sys.argv[2])
if here.is_first:
    while not (place / "go").exists():
        time.sleep(0.05)
else:
    (place / "reached").touch()
getattr(here, sys.argv[1])()
print("passed")
"""


@pytest.mark.parametrize(("method", "passes"), [("wait", True), ("barrier", False)])
def test_wait_has_a_longer_timeout_than_a_collective(free_port, tmp_path, method, passes):
    """Rank 1 waits twice as long as a collective may take, or until it has timed out, before rank 0 arrives."""
    address = address_of(free_port, world_size=2)
    processes = [start([RANK, method, str(tmp_path)], address, rank) for rank in (0, 1)]
    wait_for((tmp_path / "reached").exists, processes=processes)
    if passes:
        time.sleep(4)
    else:
        processes[1].wait(LIMIT_S)
    (tmp_path / "go").touch()
    ends = [process.communicate(timeout=300) for process in processes]
    assert (ends[1][0].strip() == "passed") is passes, ends[1][1]
    if not passes:
        assert "imed out" in ends[1][1]


DECIDING = """
import json, time
from tunesmith.errors import InputError, TunesmithError
from tunesmith.rundir.fence import Superseded
from tunesmith.training.distributed.ranks import join_ranks, leave_ranks
here, results = join_ranks("cpu"), []

def decide(what):
    assert here.is_first, "another rank has decided"
    if isinstance(what, Exception):
        raise what
    return what

for long_running in (False, True):
    for what in ({"step": 3}, None, InputError("wrong", where="a.yaml:1", remedy="fix it"), Superseded("too late")):
        if here.rank == 2:
            time.sleep(0.3)
        try:
            results.append(here.from_first(lambda: decide(what), long_running=long_running))
        except TunesmithError as error:
            results.append([type(error).__name__, error.what, error.where, error.remedy, error.exit_code])
print(json.dumps(results))
leave_ranks()
"""


def test_all_ranks_get_the_result_or_the_error_of_rank_0(free_port):
    """Three ranks; the last is always late."""
    address = address_of(free_port, world_size=3)
    processes = [start([DECIDING], address, rank) for rank in range(3)]
    ends = [process.communicate(timeout=LIMIT_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    expected = [{"step": 3}, None, ["InputError", "wrong", "a.yaml:1", "fix it", 2]]
    expected.append(["Superseded", "too late", None, None, 1])
    assert [json.loads(out.splitlines()[-1]) for out, _ in ends] == [2 * expected] * 3


def address_of(port: int, world_size: int) -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}


def start(arguments: list[str], address: dict[str, str], rank: int) -> subprocess.Popen:
    """Start a rank that runs the code of the first argument with the other arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", *arguments],
        env={**os.environ, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

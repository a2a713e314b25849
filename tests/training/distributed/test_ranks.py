"""What ranks wait for: a short while for each other's part of a step, as long as it takes for what one does alone.
And what one decides for all."""

import json
import os
import subprocess
import sys

import pytest

RANK = """
import sys, time
from tunesmith.training.distributed import ranks
ranks.COLLECTIVE_TIMEOUT_S = 2.0
here = ranks.join_ranks("cpu")
if here.is_first:
    time.sleep(5)
getattr(here, sys.argv[1])()
print("met")
"""


@pytest.mark.parametrize(("how", "met"), [("wait", True), ("barrier", False)])
def test_what_one_rank_does_alone_may_take_longer_than_a_collective(free_port, how, met):
    address = address_of(free_port, world_size=2)
    processes = [start([RANK, how], address, rank) for rank in (0, 1)]
    ends = [process.communicate(timeout=60) for process in processes]
    assert (ends[1][0].strip() == "met") is met, ends[1][1]
    if not met:
        assert "imed out" in ends[1][1]


DECIDING = """
import json, time
from tunesmith.errors import InputError, TunesmithError
from tunesmith.rundir.fence import Superseded
from tunesmith.training.distributed.ranks import join_ranks, leave_ranks
here, heard = join_ranks("cpu"), []

def decide(what):
    assert here.is_first, "another rank has looked for itself"
    if isinstance(what, Exception):
        raise what
    return what

for long_running in (False, True):
    for what in ({"step": 3}, None, InputError("wrong", where="a.yaml:1", remedy="mend it"), Superseded("too late")):
        if here.rank == 2:
            time.sleep(0.3)
        try:
            heard.append(here.from_first(lambda: decide(what), long_running=long_running))
        except TunesmithError as error:
            heard.append([type(error).__name__, error.what, error.where, error.remedy, error.exit_code])
print(json.dumps(heard))
leave_ranks()
"""


def test_rank_0_decides_for_all_and_what_it_raises_all_raise(free_port):
    """Three ranks, of which the last is always late."""
    address = address_of(free_port, world_size=3)
    processes = [start([DECIDING], address, rank) for rank in range(3)]
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    expected = [{"step": 3}, None, ["InputError", "wrong", "a.yaml:1", "mend it", 2]]
    expected.append(["Superseded", "too late", None, None, 1])
    assert [json.loads(out.splitlines()[-1]) for out, _ in ends] == [2 * expected] * 3


def address_of(port: int, world_size: int) -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}


def start(arguments: list[str], address: dict[str, str], rank: int) -> subprocess.Popen:
    """A rank that runs the code of the first argument with the others."""
    return subprocess.Popen(
        [sys.executable, "-c", *arguments],
        env={**os.environ, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

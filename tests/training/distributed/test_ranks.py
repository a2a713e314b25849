"""What ranks wait for: a short while for each other's part of a step, as long as it takes for what one does alone."""

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
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, how],
            env={**os.environ, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    ends = [process.communicate(timeout=60) for process in processes]
    assert (ends[1][0].strip() == "met") is met, ends[1][1]
    if not met:
        assert "imed out" in ends[1][1]

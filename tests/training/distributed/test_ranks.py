"""The timeout of collectives, and decisions of rank 0 for all ranks."""

import json
import subprocess

from tests.rank_processes import outputs_of_ranks, rank_environment
from tests.waiting import LIMIT_S, wait_for

RANK = """
import pathlib, sys, time
from tunesmith.training.distributed import ranks
ranks.TIMEOUT_SLACK_S = 0.5
here, place = ranks.join_ranks("cpu", stage_timeout_s=2.0), pathlib.Path(sys.argv[1])
if here.is_first:
    while not (place / "go").exists():
        time.sleep(0.05)
(place / "reached").touch()
here.barrier()
"""


def test_no_wait_for_another_rank_is_longer_than_a_stage_may_take(free_port, tmp_path, warm_python):
    """Without a watchdog: rank 0 never arrives at the barrier."""
    processes = [
        subprocess.Popen(
            [warm_python, "-c", RANK, str(tmp_path)],
            env=rank_environment(rank, 2, free_port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        wait_for((tmp_path / "reached").exists, processes=processes)
        _, log = processes[1].communicate(timeout=LIMIT_S)
    finally:
        processes[0].kill()
    assert "imed out" in log


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

wrong = InputError("wrong", where="a.yaml:1", remedy="fix it")
for what in ({"step": 3}, None, wrong, Superseded("too late"), OSError(28, "No space left")):
    if here.rank == 2:
        time.sleep(0.3)
    try:
        results.append(here.from_first(lambda: decide(what)))
    except TunesmithError as error:
        results.append([type(error).__name__, error.what, error.where, error.remedy, error.exit_code])
    except OSError as error:
        results.append(error.strerror)
print(json.dumps(results))
leave_ranks()
"""


def test_all_ranks_get_the_result_or_the_error_of_rank_0(free_port, warm_python):
    """Three ranks; the last is always late."""
    outputs = outputs_of_ranks(warm_python, ["-c", DECIDING], world_size=3, port=free_port, timeout_s=LIMIT_S)
    expected = [{"step": 3}, None, ["InputError", "wrong", "a.yaml:1", "fix it", 2]]
    expected.append(["Superseded", "too late", None, None, 1])
    first, *others = [json.loads(out.splitlines()[-1]) for out in outputs]
    assert first == [*expected, "No space left"]
    failed = "rank 0 failed: OSError: [Errno 28] No space left"
    assert others == 2 * [[*expected, ["RunFault", failed, "rank 0", "see the log of rank 0", 1]]]

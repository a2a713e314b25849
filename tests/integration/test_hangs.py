"""A rank that hangs or is stopped is named with its stage, and the attempt fails within seconds (two real ranks)."""

import re
import subprocess

import pytest

from tests.event_lines import event_lines
from tests.integration.conftest import make_project
from tests.rank_processes import rank_environment
from tests.waiting import LIMIT_S
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status
from tunesmith.training.distributed.watchdog import COARSE_FACTOR

pytestmark = [
    pytest.mark.slow,
    pytest.mark.rerun(reason="a watchdog's limit of 10 s: it also names a rank that gets no CPU for as long"),
]
TIMEOUT_S = 10
"""On a busy machine, imports alone can block the threads of a process for seconds."""


@pytest.fixture(scope="module")
def plan_of_two(tmp_path_factory, tiny_llama, chat_rows) -> str:
    """The plan for two processes of a recipe that one process has trained without errors."""
    project = make_project(tmp_path_factory.mktemp("hangs"), tiny_llama, chat_rows)
    recipe = project.write(hang_timeout_s=TIMEOUT_S, optimization={"max_steps": 3})
    alone = project.train(recipe, "alone")
    assert not list(event_lines(alone.events, "error")), "a normal run reports no error"
    planned = project.run("plan", recipe, "--set", "resources.workers=2", "--json")
    assert planned.returncode == 0, planned.stderr
    return planned.stdout


STOPPED = ("no heartbeat", "its process is stopped", "stack, innermost frame first")
"""The stack of a stopped process is from its last heartbeat, about a second earlier."""


@pytest.mark.parametrize(
    ("rank", "fault", "expected"),
    [
        (1, "step.data:3=hang", ("hangs reading data, step 3", "no progress", "in gloo:", ": rank 0", "fault_point")),
        (
            1,
            "stage.validation=hang",
            ("scoring the validation rows before its first step", "no progress", "fault_point"),
        ),
        (0, "stage.answers=hang", ("generating sample answers before its first step", "no progress", "fault_point")),
        (0, "export.gate=hang", ("hangs exporting the model, step ", "no progress", "fault_point")),
        (1, "stage.loading=stop", ("hangs loading the model before its first step", *STOPPED)),
        (1, "step.forward:3=stop", STOPPED),
        (0, "stage.checkpoint=stop", ("hangs saving a checkpoint, step 2", *STOPPED)),
    ],
)
def test_hanging_rank_is_named_with_its_stack(plan_of_two, tmp_path, free_port, warm_python, rank, fault, expected):
    run = RunDir(tmp_path / "hung")
    run.create()
    run.plan.write_text(plan_of_two)
    processes = [start(warm_python, run, number, free_port, fault if number == rank else "") for number in (0, 1)]
    try:
        assert processes[1 - rank].wait(timeout=LIMIT_S) == 1
    finally:
        for process in processes:
            process.kill()
    (error,) = event_lines(run.events, "error")
    message = f"{error['what']} {error['where']}"
    assert f"rank {rank} on" in message
    assert all(text in message for text in expected), message
    (seconds,) = re.findall(r"for (\d+) s", error["what"])
    assert int(seconds) <= (COARSE_FACTOR if "export" in fault else 1) * TIMEOUT_S + 5
    log = run.log(1, 1 - rank).read_text()
    assert "most recent call first" in log
    assert "what to do:" in log.strip().splitlines()[-1]
    status = read_status(run.status)
    assert status is not None
    assert (status.phase, status.exit_code) == ("failed", 1)


def start(python: str, run: RunDir, rank: int, port: int, fault: str) -> subprocess.Popen:
    environment = rank_environment(rank, 2, port) | {"TUNESMITH_FAULT": fault}
    command = [python, "-P", "-m", "tunesmith.training.worker", str(run.root), "--attempt", "1"]
    with open(run.log(1, rank), "w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

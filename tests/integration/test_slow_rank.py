"""A rank that is slower than the event log (two real ranks)."""

import os
import subprocess
import sys

from tests.event_lines import event_lines
from tests.waiting import LIMIT_S, wait_for
from tunesmith.rundir.paths import RunDir


def test_slow_rank_does_not_skip_the_answers_before_training(project, free_port):
    """Rank 0 logs the answers and waits for rank 1, which has not read the events yet. If ranks decided by the events,
    rank 1 would start the first step, and both would deadlock."""
    recipe = project.write(optimization={"epochs": 1}, evaluation={"every_steps": None})
    run, go = RunDir(project.directory / "late"), project.directory / "go"
    run.create()
    planned = project.run("plan", recipe, "--set", "resources.workers=2", "--json")
    assert planned.returncode == 0, planned.stderr
    run.plan.write_text(planned.stdout)
    late = {"TUNESMITH_FAULT": "before.answers=hang", "TUNESMITH_FAULT_UNTIL": str(go)}

    def logs() -> str:
        return "\n".join(run.log(1, rank).read_text() for rank in (0, 1))

    processes = [start(run, rank, free_port, late if rank == 1 else {}) for rank in (0, 1)]
    try:
        wait_for(go.with_name("go.reached").exists, explain=logs, processes=processes)
        wait_for(lambda: list(event_lines(run.events, "answers")), explain=logs, processes=processes)
        assert [process.poll() for process in processes] == [None, None]
        go.touch()
        codes = [process.wait(timeout=LIMIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], logs()
    assert [event["when"] for event in event_lines(run.events, "answers")] == ["before", "after"]


def start(run: RunDir, rank: int, port: int, environment: dict[str, str]) -> subprocess.Popen:
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-P", "-m", "tunesmith.training.worker", str(run.root), "--attempt", "1"]
    with open(run.log(1, rank), "w") as log:
        return subprocess.Popen(
            command, env={**os.environ, **variables, **environment}, stdout=log, stderr=subprocess.STDOUT
        )

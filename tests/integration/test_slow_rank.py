"""Two real ranks, one of which comes late to what the other has written down already."""

import os
import subprocess
import sys

from tests.event_lines import event_lines
from tests.integration.processes import wait_for
from tunesmith.rundir.paths import RunDir


def test_a_rank_that_comes_late_to_the_answers_before_training_does_not_skip_them(project, free_port):
    """Rank 0 writes the answers into the events and waits for rank 1, which has not looked at the events yet. A rank
    that decided by what it reads there would go on to the first step, and both would wait for each other."""
    recipe = project.write(optimization={"epochs": 1}, evaluation={"every_steps": None})
    run, go = RunDir(project.directory / "late"), project.directory / "go"
    run.create()
    planned = project.run("plan", recipe, "--set", "resources.workers=2", "--json")
    assert planned.returncode == 0, planned.stderr
    run.plan.write_text(planned.stdout)
    late = {"TUNESMITH_FAULT": "before.answers=hang", "TUNESMITH_FAULT_UNTIL": str(go)}
    processes = [start(run, rank, free_port, late if rank == 1 else {}) for rank in (0, 1)]
    try:
        wait_for(go.with_name("go.reached").exists, timeout_s=240)
        wait_for(lambda: list(event_lines(run.events, "answers")), timeout_s=240)
        assert [process.poll() for process in processes] == [None, None]
        go.touch()
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(run.log(1, rank).read_text() for rank in (0, 1))
    assert [event["when"] for event in event_lines(run.events, "answers")] == ["before", "after"]


def start(run: RunDir, rank: int, port: int, environment: dict[str, str]) -> subprocess.Popen:
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    call = [sys.executable, "-P", "-m", "tunesmith.training.worker", str(run.root), "--attempt", "1"]
    with open(run.log(1, rank), "w") as log:
        return subprocess.Popen(call, env={**os.environ, **own, **environment}, stdout=log, stderr=subprocess.STDOUT)

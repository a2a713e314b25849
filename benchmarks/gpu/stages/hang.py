"""A rank that hangs in a step is named with its stage, and the logs of the ranks that wait name the collective."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.product import events, run_directory, tunesmith, write_recipe
from benchmarks.gpu.recipes import chat_recipe
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.stages.ranks import num_ranks

TIMEOUT_S = 10
COLLECTIVES = r"all_reduce|allreduce|all_gather|allgather|reduce_scatter|broadcast|barrier"


def run(setting: Setting, record: Record) -> None:
    count = num_ranks(setting)
    recipe = chat_recipe(setting, "lora") | {"hang_timeout_s": TIMEOUT_S, "resources": {"workers": count}}
    recipe["data"] = {**recipe["data"], "validation": 0.0}
    recipe["evaluation"] = {"num_answers": 0}
    run = run_directory(setting, "hang")
    plan = tunesmith(setting, "plan", write_recipe(setting, "hang", recipe), "--json")
    logs = start_ranks(run, plan, count, hanging=count - 1)
    message = " ".join(f"{event['what']} {event['where']}" for event in events(run, "error"))
    record.figure("error", message[:2000])
    record.check("the error names the rank", f"rank {count - 1} on" in message, "equals", True)
    record.check("the error names the stage", "hangs in forward and backward, step 3" in message, "equals", True)
    waiting = "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in logs[:-1])
    named = sorted(set(re.findall(COLLECTIVES, waiting, re.IGNORECASE)))
    record.figure("collectives in the logs of the waiting ranks", named)
    record.check("a waiting rank's log names a collective", bool(named), "equals", True)


def start_ranks(run: Path, plan: str, count: int, *, hanging: int) -> list[Path]:
    """Run the workers of a plan, one of which hangs in its third step, and return their logs."""
    from tunesmith.rundir.paths import RunDir

    directory = RunDir(run)
    directory.create()
    directory.plan.write_text(plan, encoding="utf-8")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    logs, processes = [directory.log(1, rank) for rank in range(count)], []
    for rank, log in enumerate(logs):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        variables |= {"MASTER_PORT": str(port), "TUNESMITH_FAULT": "step.forward:3=hang" if rank == hanging else ""}
        command = [sys.executable, "-P", "-m", "tunesmith.training.worker", str(run), "--attempt", "1"]
        with open(log, "w", encoding="utf-8") as output:
            processes.append(
                subprocess.Popen(command, env={**os.environ, **variables}, stdout=output, stderr=subprocess.STDOUT)
            )
    for process in processes[:-1]:
        process.wait()
    processes[-1].kill()
    processes[-1].wait()
    return logs

"""Runs the `tunesmith` command like a user, and reads what a run recorded."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.setting import Setting

COMMAND = [sys.executable, "-m", "tunesmith.cli.main"]
FAULT, PREEMPTED = 1, 75
"""Exit codes of the command."""
Recipe = dict[str, Any]


def start(setting: Setting, *arguments: object, faults: str = "") -> subprocess.Popen:
    """Start `tunesmith ARGUMENTS` in the working directory. faults: as TUNESMITH_FAULT (rundir/faults.py)."""
    environment = {**os.environ, **({"TUNESMITH_FAULT": faults} if faults else {})}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=setting.work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tunesmith(setting: Setting, *arguments: object, faults: str = "", expected: int = 0) -> str:
    """Run a command and return its standard output. Raises RuntimeError for another exit code than expected."""
    process = start(setting, *arguments, faults=faults)
    output, errors = process.communicate()
    if process.returncode != expected:
        what = " ".join(map(str, arguments))
        what = f"tunesmith {what} ended with exit code {process.returncode}, not {expected}"
        raise RuntimeError(f"{what}:\n{errors}\n{output}")
    return output


def write_recipe(setting: Setting, name: str, recipe: Mapping[str, Any]) -> Path:
    path = setting.work / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, **recipe}, indent=2), encoding="utf-8")  # JSON is YAML
    return path


def run_directory(setting: Setting, name: str) -> Path:
    """Return the directory of a new run: one that an earlier call of the script left is deleted."""
    import shutil

    directory = setting.work / "runs" / name
    shutil.rmtree(directory, ignore_errors=True)
    return directory


def trained(setting: Setting, name: str, recipe: Mapping[str, Any], *overrides: str, faults: str = "") -> Path:
    """Train a recipe to its end and return the run's directory. overrides: KEY=VALUE."""
    run = run_directory(setting, name)
    settings = [part for override in overrides for part in ("--set", override)]
    tunesmith(setting, "train", write_recipe(setting, name, recipe), "--run-dir", run, *settings, faults=faults)
    return run


def trained_until(
    setting: Setting, name: str, recipe: Mapping[str, Any], steps: int, *overrides: str, saves: bool = True
) -> Path:
    """Train until a step, then end the run: no time is spent on the export. saves: with SIGTERM, which saves a
    checkpoint; otherwise the process of its only rank is killed."""
    run = run_directory(setting, name)
    settings = [part for override in overrides for part in ("--set", override)]
    process = start(setting, "train", write_recipe(setting, name, recipe), "--run-dir", run, *settings)
    wait_until(lambda: len(losses(run)) >= steps or process.poll() is not None)
    if process.poll() is None and saves:
        process.send_signal(signal.SIGTERM)
    elif process.poll() is None:
        os.kill(events(run, "start")[-1]["pid"], signal.SIGKILL)
    output, errors = process.communicate()
    if process.returncode not in (0, PREEMPTED if saves else FAULT) or len(losses(run)) < steps:
        what = f"the run {name} ended with exit code {process.returncode} after {len(losses(run))} of {steps} steps"
        raise RuntimeError(f"{what}:\n{errors}\n{output}")
    return run


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the time limit is that of the stage."""
    while not condition():
        time.sleep(0.1)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of a kind. An incomplete last line is ignored."""
    file = run / "events.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    parsed = []
    for line in lines:
        try:
            parsed.append(json.loads(line))
        except ValueError:
            continue
    return [event for event in parsed if event.get("kind") == kind]


def losses(run: Path) -> dict[int, float]:
    """Return the loss of each step; for a repeated step the later one."""
    return {event["step"]: event["loss"] for event in events(run, "step")}


def plan_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "plan.json").read_text(encoding="utf-8"))


def weights(run: Path) -> dict[str, bytes]:
    """Return the tensor files of the newest checkpoint."""
    newest = max(path for path in (run / "checkpoints").iterdir() if path.name.startswith("step-") and not path.suffix)
    return {path.name: path.read_bytes() for path in sorted(newest.glob("*.safetensors"))}


def kernels_of(run: Path) -> dict[str, str]:
    """Return operation -> implementation of the kernels that the run compared and kept."""
    items = [item for event in events(run, "kernels") for item in event["items"]]
    return {item["operation"]: item["implementation"] for item in items if item["holds"]}


def speed(run: Path, *, warm_up: int = 2) -> dict[str, float]:
    """Return medians over the steps after the first `warm_up`: tokens_per_s, step_s, and peak_bytes of all steps."""
    steps = events(run, "step")
    later = steps[warm_up:] or steps[-1:]
    return {
        "tokens_per_s": statistics.median(step["tokens_per_s"] for step in later),
        "step_s": statistics.median(step["step_s"] for step in later),
        "peak_bytes": max(step["peak_memory_bytes"] for step in steps),
        "num_steps": len(later),
    }

"""Startup cost of `tunesmith train`, and overhead of monitoring per step.

    python benchmarks/start.py [--pairs 7] [--steps 4] [--model models/smollm2-135m]

Alternately, `pairs` times, each in a fresh process: `import torch` and loading the model with transformers in fp32; and
`tunesmith train` on 200 prepared chats until the first step begins (fault point `step.forward`). CPU seconds of the
process and its children, and wall seconds.

Profile: the launcher and the worker once more under cProfile; CPU seconds by package, including C functions that it
calls.

Then one run of `steps` steps of one row of 512 tokens: CPU seconds of the threads in the heartbeat, watchdog, signal
check, ledger and journal, as a fraction of the CPU seconds of all steps except the first.
"""

import argparse
import json
import os
import pstats
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import rows

ROOT = Path(__file__).resolve().parent.parent
LOAD = (
    "import sys, torch; from transformers import AutoModelForCausalLM; "
    "AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, local_files_only=True)"
)


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **more}


def write_recipe(work: Path, model: Path, steps: int, max_seq_len: int) -> Path:
    rows.write_many_rows(work / "rows.jsonl", 200)
    recipe = {
        "name": "start",
        "model": {"base": str(model)},
        "task": "chat",
        "method": {"kind": "lora"},
        "data": {"train": [str(work / "rows.jsonl")], "validation": 0.0, "max_seq_len": max_seq_len}
        | {"too_long": "truncate", "max_rejects": 200},
        "optimization": {"global_batch_size": 1, "max_steps": steps},
        "evaluation": {"num_answers": 0},
        "precision": "fp32",
    }
    path = work / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def clocked(command: list[str], environ: dict[str, str], log: Path) -> tuple[float, float, int]:
    """Return CPU seconds of a command and its children, wall seconds, and exit code."""
    started = time.perf_counter()
    with open(log, "wb") as file:
        process = subprocess.Popen(command, env=environ, stdout=file, stderr=file, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - started, process.returncode


def measure_start(work: Path, model: Path, pairs: int) -> dict[str, list[float]]:
    recipe = write_recipe(work, model, 1, 512)
    variables = environment(TUNESMITH_CACHE=str(work / "cache"))
    train = [sys.executable, "-m", "tunesmith.cli.main", "train", str(recipe), "--run-dir"]
    seconds: dict[str, list[float]] = {name: [] for name in ("bare_cpu_s", "bare_s", "train_cpu_s", "train_s")}
    for number in range(-1, pairs):  # the first prepares the rows and warms the disk cache
        cpu_s, wall_s, code = clocked([sys.executable, "-c", LOAD, str(model)], variables, work / "bare.log")
        if code:
            raise SystemExit((work / "bare.log").read_text("utf-8"))
        run = work / f"run{number}"
        killed = {**variables, "TUNESMITH_FAULT": "step.forward=kill"}
        train_cpu_s, train_s, _ = clocked([*train, str(run)], killed, work / "train.log")
        if not any((run / "ledger").glob("*.jsonl")):
            raise SystemExit("no step started:\n" + (work / "train.log").read_text("utf-8")[-2000:])
        if number >= 0:
            for name, value in zip(seconds, (cpu_s, wall_s, train_cpu_s, train_s), strict=True):
                seconds[name].append(value)
    return seconds


PROFILED = """
import cProfile, importlib, sys, time
output, module, *arguments = sys.argv[1:]
sys.argv = [module, *arguments]
profiler = cProfile.Profile(time.process_time)
try:
    profiler.runcall(lambda: importlib.import_module(module).main())
except SystemExit:
    pass
finally:
    profiler.dump_stats(output)
"""
"""Includes imports, which take most of the time."""


def profile(work: Path, model: Path) -> list[dict[str, Any]]:
    """Profile the launcher and a worker up to the start of the first step, by package."""
    recipe, run = write_recipe(work, model, 1, 512), work / "profiled"
    variables = environment(TUNESMITH_CACHE=str(work / "cache"), TUNESMITH_FAULT="step.forward=kill")
    train = ["tunesmith.cli.main", "train", str(recipe), "--run-dir", str(run)]
    clocked([sys.executable, "-c", PROFILED, str(work / "launcher.prof"), *train], variables, work / "profile.log")
    again = run.with_name("again")
    again.mkdir()
    (again / "plan.json").write_text((run / "plan.json").read_text(encoding="utf-8"), encoding="utf-8")
    variables["TUNESMITH_FAULT"] = "step.forward=raise"
    worker = ["tunesmith.training.worker", str(again)]
    clocked([sys.executable, "-c", PROFILED, str(work / "worker.prof"), *worker], variables, work / "profile.log")
    return machine.shares(
        {
            f"{who}: {package}": of
            for who in ("launcher", "worker")
            for package, of in by_package(work / f"{who}.prof").items()
        }
    )


def by_package(path: Path) -> dict[str, float]:
    """Return CPU seconds in the functions of each package; C functions count for their callers."""
    entries: dict[Any, Any] = pstats.Stats(str(path)).stats  # type: ignore[attr-defined]
    seconds: dict[str, float] = {}
    for (file, _, _), (_, _, own_time, _, callers) in entries.items():
        parts = [(file, own_time)] if file != "~" else [(caller[0], entry[2]) for caller, entry in callers.items()]
        for name, value in parts:
            package = package_of(name)
            seconds[package] = seconds.get(package, 0.0) + value
    return seconds


def package_of(file: str) -> str:
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    if file.startswith(str(ROOT)):
        return "tunesmith"
    return "importing modules" if "importlib" in file else "Python standard library"


def measure_upkeep(work: Path, model: Path, steps: int, max_seq_len: int) -> dict[str, Any]:
    """Run the worker in this process on a plan created by the command line, and measure the monitoring overhead."""
    from tunesmith.rundir.ledger import Ledger
    from tunesmith.training import worker
    from tunesmith.training.distributed.interruption import Interruption
    from tunesmith.training.distributed.watchdog import Watchdog
    from tunesmith.training.journal import Journal

    recipe = write_recipe(work, model, steps, max_seq_len)
    command = [sys.executable, "-m", "tunesmith.cli.main", "plan", str(recipe), "--json"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment())
    run = work / "upkeep"
    run.mkdir()
    (run / "plan.json").write_text(planned.stdout, encoding="utf-8")
    spent: dict[str, float] = {}
    marks: list[tuple[float, dict[str, float]]] = []
    lock, inside = threading.Lock(), threading.local()

    def clock(owner: type, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)
        label = f"{owner.__name__}.{name}"

        def timed(*arguments: Any, **named: Any) -> Any:
            if getattr(inside, "busy", False):  # nested calls count once
                return original(*arguments, **named)
            inside.busy, started = True, time.thread_time()
            try:
                return original(*arguments, **named)
            finally:
                inside.busy = False
                with lock:
                    spent[label] = spent.get(label, 0.0) + time.thread_time() - started
                    if label == "Journal.step":
                        marks.append((time.process_time(), dict(spent)))

        setattr(owner, name, timed)

    clocked_calls = [(Watchdog, "_enter"), (Watchdog, "beat"), (Watchdog, "check"), (Ledger, "write")]
    for owner, name in (*clocked_calls, (Journal, "step"), (Journal, "_write_status"), (Interruption, "check")):
        clock(owner, name)
    sys.argv = ["worker", str(run)]
    assert worker.main() == 0
    (first_s, before), (last_s, after) = marks[0], marks[-1]
    parts = {name: after[name] - before.get(name, 0.0) for name in after}
    return {
        "steps": len(marks) - 1,
        "cpu_s_a_step": (last_s - first_s) / (len(marks) - 1),
        "cpu_s": {name: seconds / (len(marks) - 1) for name, seconds in sorted(parts.items())},
        "share": sum(parts.values()) / (last_s - first_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    arguments = parser.parse_args()
    command = ["python", "benchmarks/start.py", *sys.argv[1:]]
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        work, model = Path(folder), arguments.model.resolve()
        seconds = measure_start(work, model, arguments.pairs)
        os.environ["TUNESMITH_CACHE"] = str(work / "cache")
        profile_entries = profile(work, model)
        upkeep = measure_upkeep(work, model, arguments.steps, 512)
    both = {
        f"start{kind}": machine.spread(
            [a / b for a, b in zip(seconds[f"train{kind}"], seconds[f"bare{kind}"], strict=True)]
        )
        for kind in ("_cpu_s", "_s")
    }
    results = {
        "command": command,
        "seconds": {name: machine.spread(values) for name, values in seconds.items()},
        **both,
        "upkeep": upkeep,
        "profile": profile_entries,
    }
    table = [["quantity", "median", "low", "high"]]
    for name, value in (*results["seconds"].items(), *both.items()):
        table.append([name, *(f"{value[key]:.3f}" for key in ("median", "low", "high"))])
    table.append(["monitoring, fraction of a step's CPU time", f"{upkeep['share']:.5f}", "", ""])
    machine.write("start", results, table, arguments.results)


if __name__ == "__main__":
    main()

"""The command line of acceptance.py and several.py: choose stages, run them, write the results and the table."""

import argparse
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import table
from benchmarks.gpu.carried import directory_for
from benchmarks.gpu.record import Record, write_json
from benchmarks.gpu.running import PASSED, SCHEMA, SKIPPED, Results, Stage, read_results, run_inside, run_stages

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = directory_for(f"{sys.version_info.major}.{sys.version_info.minor}")
"""Carried packages for this version of Python; on the import path if they are there."""
SLOWNESS = 8.0
"""Factor of every time limit in a rehearsal: two shared cores and an interpreter."""


class BadArguments(Exception):
    """What the user has to change; exit code 2."""


def main(stages: Sequence[Stage], description: str | None, name: str, script: Path) -> int:
    """Run the command line of a script with these stages. name: of its results file. Returns the exit code."""
    arguments = parse(description)
    by_name = {stage.name: stage for stage in stages}
    if arguments.inside:
        return inside(by_name[arguments.inside], arguments)
    try:
        if arguments.list:
            print("\n".join(f"{stage.name}: {stage.about} ({stage.limit_s:.0f} s)" for stage in stages))
            return 0
        if arguments.table is not None:
            files = [Path(file) for file in arguments.table] or table.committed()
            table.write(files)
            return 0
        return run(stages, by_name, arguments, name, script)
    except BadArguments as error:
        print(error, file=sys.stderr)
        return 2


def parse(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="results file; default: benchmarks/results/")
    parser.add_argument("--stages", metavar="A,B", help="run only these stages")
    parser.add_argument("--continue", dest="previous", type=Path, metavar="FILE", help="run again what did not pass")
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit of the whole run; default: 10")
    parser.add_argument("--work", type=Path, help="directory for models and runs; default: a temporary one")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU with tiny sizes; no time limit of the whole")
    parser.add_argument("--short", action="store_true", help="with --rehearse: each code path once")
    parser.add_argument("--list", action="store_true", help="list the stages")
    parser.add_argument("--table", nargs="*", metavar="FILE", help="write the results into docs/gpu.md")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(
    stages: Sequence[Stage], by_name: Mapping[str, Stage], arguments: argparse.Namespace, name: str, script: Path
) -> int:
    if arguments.short and not arguments.rehearse:
        raise BadArguments("--short needs --rehearse")
    results = results_of(arguments, name)
    chosen = choose(stages, by_name, arguments, results)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the stage's processes
    use_packages()
    with tempfile.TemporaryDirectory(prefix="tunesmith-acceptance-") as temporary:
        work = arguments.work.resolve() if arguments.work else Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        options = [*(["--rehearse"] if arguments.rehearse else []), *(["--short"] if arguments.short else [])]

        def command(stage: Stage, record: Path) -> list[str]:
            own = ["--inside", stage.name, "--record", str(record), "--work", str(work)]
            return [sys.executable, "-u", str(script), *own, *options]

        run_stages(
            chosen,
            results,
            command,
            lambda stage: environment(stage, work, rehearsal=arguments.rehearse),
            budget_s=float("inf") if arguments.rehearse else 60 * arguments.minutes,
            work=work,
            slowness=SLOWNESS if arguments.rehearse else 1.0,
            report=lambda line: print(line, flush=True),
        )
    bad = [stage.name for stage in chosen if results.status(stage.name) not in (PASSED, SKIPPED)]
    print(f"{results.path}: " + (f"not passed: {', '.join(bad)}" if bad else "all stages passed or were skipped"))
    return int(bool(bad))


def results_of(arguments: argparse.Namespace, name: str) -> Results:
    """The results file to write: that of an earlier run with --continue, otherwise a new one."""
    if arguments.previous is not None:
        try:
            content = read_results(arguments.previous)
        except (OSError, ValueError) as error:
            raise BadArguments(f"--continue: {error}") from error
        if content["rehearsal"] != arguments.rehearse:
            kind = "a rehearsal" if content["rehearsal"] else "a run on a GPU"
            raise BadArguments(f"--continue: {arguments.previous} has the results of {kind}")
        return Results(arguments.results or arguments.previous, content)
    path = arguments.results
    if path is None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        path = (
            Path(tempfile.gettempdir(), f"{name}-rehearsal.json")
            if arguments.rehearse
            else RESULTS / f"{name}-{stamp}.json"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": SCHEMA,
        "script": name,
        "rehearsal": arguments.rehearse,
        "command": ["python", *map(str, sys.argv)],
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit(),
        "stages": {},
    }
    write_json(path, content)
    return Results(path, content)


def choose(
    stages: Sequence[Stage], by_name: Mapping[str, Stage], arguments: argparse.Namespace, results: Results
) -> list[Stage]:
    """The stages to run, in the order of value: those named, without those that an earlier run passed."""
    default = [stage.name for stage in stages if not (arguments.short and stage.repeats)]
    named = arguments.stages.split(",") if arguments.stages else default
    if unknown := [name for name in named if name not in by_name]:
        raise BadArguments(f"there is no stage {', '.join(unknown)}; stages: {', '.join(by_name)}")
    again = bool(arguments.stages)  # a stage that is named runs also if it has passed
    return [s for s in stages if s.name in named and (again or results.status(s.name) != PASSED)]


def use_packages() -> None:
    """Put carried packages on the import path of this process, which looks for what the stages need."""
    if PACKAGES.is_dir():
        sys.path.append(str(PACKAGES))


def environment(stage: Stage, work: Path, *, rehearsal: bool) -> dict[str, str]:
    """Variables of a stage's processes: no network, caches in the working directory, no GPU in a rehearsal."""
    path = [str(ROOT), *([str(PACKAGES)] if PACKAGES.is_dir() else []), os.environ.get("PYTHONPATH", "")]
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TUNESMITH_CACHE": str(work / "cache"),
        "TRITON_CACHE_DIR": str(work / "triton"),
    }
    if rehearsal:
        variables |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        variables |= {"TRITON_INTERPRET": "1"} if stage.interpreted else {}
    else:
        variables |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # read when CUDA starts
    return {**{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}, **variables}


def inside(stage: Stage, arguments: argparse.Namespace) -> int:
    """Run a stage in this process."""
    module, _, function = stage.module.partition(":")

    def stage_function(record: Record) -> None:
        from benchmarks.gpu.setting import Setting

        setting = Setting(arguments.rehearse, arguments.short, arguments.work)
        if not arguments.rehearse:
            from tunesmith.modeling.cuda import set_up_cuda

            set_up_cuda(0)
        run_function: Any = getattr(importlib.import_module(f"benchmarks.gpu.stages.{module}"), function)
        run_function(setting, record)

    return run_inside(stage_function, arguments.record)


def commit() -> str:
    """The commit of the checkout; where git is not there, the version."""
    try:
        result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        result = None
    if result is not None and result.returncode == 0:
        return result.stdout.strip()
    version = re.search(r'__version__ = "(.+)"', (ROOT / "tunesmith" / "__init__.py").read_text(encoding="utf-8"))
    return f"version {version[1]}" if version else "unknown"

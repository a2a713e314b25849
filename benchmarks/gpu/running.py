"""Runs stages one after the other, each in a process of its own: a hang, a CUDA fault or a lack of memory ends only its
stage. The results file is written before and after every stage. Standard library only."""

import importlib.util
import json
import os
import resource
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import Record, Skipped, write_json

MARK = "TUNESMITH_ACCEPTANCE_STAGE"
"""Variable in the environment of every process of a stage: also of those that start a session of their own."""
LEAST_S = 5.0
"""A stage is not started with less time left."""
LOG_CHARACTERS = 6000
SCHEMA = 1
PASSED, SKIPPED = "passed", "skipped"


@dataclass(frozen=True)
class Stage:
    """A stage: `module:function` below benchmarks.gpu.stages, called with (setting, record).

    limit_s: its time limit on a GPU. packages: needed in addition to torch. interpreted: a rehearsal runs Triton's
    interpreter in it; other stages use the CPU's kernels there.
    """

    name: str
    module: str
    about: str
    limit_s: float
    packages: tuple[str, ...] = ("triton",)
    interpreted: bool = False
    repeats: bool = False
    """Runs no code that another stage or a test of the suite does not: the short rehearsal leaves it out."""


@dataclass(frozen=True)
class Results:
    """The results file. content: {schema, rehearsal, command, started, version, commit, stages: {name: result}}."""

    path: Path
    content: dict[str, Any]

    def set(self, name: str, result: Mapping[str, Any]) -> None:
        self.content["stages"][name] = dict(result)
        write_json(self.path, self.content)

    def status(self, name: str) -> str:
        return self.content["stages"].get(name, {}).get("status", "missing")


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file. Raises OSError, or ValueError if it is not one of this version."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content.get("stages"), dict):
        raise ValueError(f"{path} is not a results file of this version (schema {SCHEMA})")
    return content


Command = Callable[[Stage, Path], Sequence[str]]
"""Returns the command that runs a stage and writes its record to the path."""


def run_stages(
    stages: Sequence[Stage],
    results: Results,
    command: Command,
    environment: Callable[[Stage], Mapping[str, str]],
    *,
    budget_s: float,
    work: Path,
    slowness: float = 1.0,
    report: Callable[[str], None] = print,
) -> None:
    """Run the stages within `budget_s` seconds in all and write each result.

    slowness: factor of every stage's limit. A stage that is running is recorded as `interrupted` until it ends, so that
    the file shows it if this process is killed.
    """
    deadline = time.monotonic() + budget_s
    for stage in stages:
        lacking = [package for package in stage.packages if importlib.util.find_spec(package) is None]
        left_s = deadline - time.monotonic()
        if lacking:
            result = {"status": SKIPPED, "reason": f"needs {', '.join(lacking)}, not installed", "seconds": 0.0}
        elif left_s < LEAST_S:
            result = {"status": "not run", "reason": f"the {budget_s:.0f} s of this run are used up", "seconds": 0.0}
        else:
            limit_s = min(slowness * stage.limit_s, left_s)
            results.set(stage.name, {"status": "interrupted", "reason": "did not end", "seconds": 0.0})
            report(f"{stage.name} (at most {limit_s:.0f} s) ...")
            result = run_stage(stage, command, environment(stage), limit_s=limit_s, work=work)
        results.set(stage.name, result)
        report(line_of(stage.name, result))


def run_stage(
    stage: Stage, command: Command, environment: Mapping[str, str], *, limit_s: float, work: Path
) -> dict[str, Any]:
    """Run a stage in a process of its own, end all its processes, and return its result: the record, with status
    (passed, failed, skipped, crashed or timed out), reason, seconds and, unless passed, the end of its log."""
    file, log, mark = work / f"{stage.name}.json", work / f"{stage.name}.log", uuid.uuid4().hex
    file.unlink(missing_ok=True)
    started, cpu_before_s = time.monotonic(), children_cpu_s()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command(stage, file),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**environment, MARK: mark},
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_processes(mark)
            process.wait()
    result = _record_of(file)
    if code is None:
        result |= {"status": "timed out", "reason": f"did not end within {limit_s:.0f} s"}
    elif "status" not in result or (code != 0 and result["status"] == PASSED):
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        result |= {"status": "crashed", "reason": f"{how} without a result"}
    result["seconds"] = round(time.monotonic() - started, 1)
    result["cpu_s"] = round(children_cpu_s() - cpu_before_s, 1)
    if result["status"] not in (PASSED, SKIPPED):
        result["log"] = log.read_bytes()[-LOG_CHARACTERS:].decode("utf-8", "replace")
    return result


def children_cpu_s() -> float:
    """CPU seconds of the processes that this process, or one of these, has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def end_processes(mark: str) -> None:
    """Kill every process of a stage, whatever session and parent it has now, and wait until they have exited."""
    for _ in range(50):
        pids = marked_processes(mark)
        if not pids:
            return
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def marked_processes(mark: str) -> list[int]:
    """Processes with the mark in their environment, without those that have exited (zombies have no environment)."""
    entry, pids = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                pids.append(int(folder.name))
    return pids


def run_inside(function: Callable[[Record], None], file: Path) -> int:
    """Run a stage's function in this process, recording every outcome. Returns the exit code."""
    record = Record(file)
    try:
        function(record)
    except Skipped as reason:
        record.end(SKIPPED, str(reason))
        return 0
    except BaseException as error:  # also SystemExit of a library
        record.end("failed", f"{type(error).__name__}: {error}"[:1000])
        raise
    failed = record.failed_checks
    nothing = not (record.content["checks"] or record.content["figures"])
    record.end(
        "failed" if failed or nothing else PASSED, "; ".join(failed) or ("it measured nothing" if nothing else "")
    )
    return int(bool(failed) or nothing)


def line_of(name: str, result: Mapping[str, Any]) -> str:
    """A stage's result in one line: status, reason, missed goals."""
    missed = [goal["what"] for goal in result.get("goals", ()) if not goal["holds"]]
    parts = [f"{name}: {result['status']} after {result['seconds']:.0f} s"]
    parts += [result["reason"]] if result.get("reason") else []
    parts += [f"goals missed: {'; '.join(missed)}"] if missed else []
    return ", ".join(parts)


def _record_of(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return {}

"""Finds runs by path, or by name under runs/ in the working directory."""

import math
import os
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.rundir.events import EvaluationEvent, StepEvent, parse_event
from tunesmith.rundir.paths import RunDir, require_possible
from tunesmith.rundir.status import FINAL, is_running, read_status

TAIL_BYTES = 64 << 10
BROKEN_OFF = "broken off"


@dataclass(frozen=True)
class RunRow:
    """One row of `tunesmith runs`. phase: from the status, or BROKEN_OFF. loss: latest validation or training loss."""

    name: str
    path: str
    phase: str
    step: int
    total_steps: int
    loss: float | None
    started: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def runs_folder() -> Path:
    return Path("runs")


def default_run_dir(name: str) -> Path:
    """The run directory of a recipe without --run-dir."""
    return runs_folder() / name


def is_run(directory: Path) -> bool:
    run = RunDir(directory)
    return run.plan.is_file() or run.status.is_file()


def find_run(text: str) -> RunDir:
    """Find a run by path or name. Raises InputError that lists similar names."""
    require_possible(Path(text), "pass the directory of a run, or its name; `tunesmith runs` lists them")
    tried = [Path(text), runs_folder() / text]
    for directory in tried:
        if is_run(directory):
            return RunDir(directory)
    names = [row.name for row in list_runs()]
    near = get_close_matches(Path(text).name, names, n=3, cutoff=0.5) or names[:5]
    remedy = f"runs here: {', '.join(near)}" if near else "`tunesmith train RECIPE` starts a run"
    if (folder := find_folder(text)) is not None:
        inside = [row.path for row in sorted(list_runs(folder), key=lambda row: row.name)]
        remedy = f"pass one of its {len(inside)} runs, such as {inside[0]}; `tunesmith status {text}` shows all"
        raise InputError("not a run, but a directory of runs", where=str(folder), remedy=remedy)
    if tried[0].is_dir():
        raise InputError("not a run directory: it has no plan.json", where=text, remedy=remedy)
    raise InputError(f"run {text!r} not found", where=f"{tried[0]}, {tried[1]}", remedy=remedy)


def find_folder(text: str) -> Path | None:
    """Return a directory that is no run but contains runs, such as that of a sweep, by path or name; None otherwise."""
    require_possible(Path(text), "pass the directory of a run or of runs, or a name")
    for folder in (Path(text), runs_folder() / text):
        if is_run(folder):
            return None
        if list_runs(folder):
            return folder
    return None


def find_target(text: str) -> str:
    """Resolve the argument of `evaluate` and `chat`: the directory of a run with this name, otherwise the text itself.

    Raises InputError if it names nothing here and resembles the name of a run.
    """
    require_possible(Path(text), "pass the directory of a run or a model, or a name")
    named = runs_folder() / text
    if not Path(text).exists() and is_run(named):
        return str(named)
    if not Path(text).exists() and "/" not in text:
        near = get_close_matches(text, [row.name for row in list_runs()], n=3, cutoff=0.7)
        if near:
            raise InputError(f"run or model {text!r} not found", where=str(named), remedy=f"runs: {', '.join(near)}")
    return text


def list_runs(folder: Path | None = None) -> list[RunRow]:
    """The runs in a directory (default: runs/ in the working directory), newest first."""
    folder = folder or runs_folder()
    if not folder.is_dir():
        return []
    rows = [_row(RunDir(path)) for path in folder.iterdir() if path.is_dir() and is_run(path)]
    return sorted(rows, key=lambda row: (-row.started, row.name))


def phase_of(run: RunDir) -> str:
    """The phase in a run's status; `broken off` if its process exited without recording it."""
    status = read_status(run.status)
    if status is None:
        return BROKEN_OFF
    return status.phase if status.phase in (*FINAL, "queued") or is_running(status) else BROKEN_OFF


def _row(run: RunDir) -> RunRow:
    status = read_status(run.status)
    return RunRow(
        name=run.name,
        path=str(run.root),
        phase=phase_of(run),
        step=status.step if status else 0,
        total_steps=status.total_steps if status else 0,
        loss=_newest_loss(run.events),
        started=status.started or status.heartbeat if status else 0.0,
    )


def _newest_loss(events: Path) -> float | None:
    """Loss of the latest evaluation in the end of the log, otherwise of the latest step. The whole log may be long."""
    try:
        with open(events, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    parsed = [event for line in reversed(lines) if (event := parse_event(line))]
    evaluated = [event.scores.loss for event in parsed if isinstance(event, EvaluationEvent)]
    trained = [event.loss for event in parsed if isinstance(event, StepEvent)]
    losses = (loss for loss in (*evaluated, *trained) if loss is not None and math.isfinite(loss))
    return next(losses, None)

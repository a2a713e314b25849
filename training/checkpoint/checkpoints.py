"""Checkpoints: written whole or not at all, found by scanning, verified before use. One format for every engine.

    step-00000100/   model.safetensors       trained weights by parameter name, fp32
                     optimizer.safetensors   exp_avg.<name>, exp_avg_sq.<name>, fp32
                     state.json              the run's state and the fingerprints of what it belongs to
                     manifest.json           bytes and SHA-256 of the above, written last

Random numbers need no place here: they are a function of (seed, step, rank), as the data position is of the step.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import RunFault
from tunesmith.rundir.atomic import fsync_directory
from tunesmith.rundir.commit import committed_directory, verify
from tunesmith.rundir.fence import Superseded, require_newest
from tunesmith.rundir.paths import RunDir, step_of
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.checkpoint.tensor_file import TensorFile, write_tensors
from tunesmith.training.engine.protocol import Engine
from tunesmith.training.optim.optimizer import MOMENTS

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
REQUIRED_FINGERPRINTS = ("model", "data")
"""Fingerprints without which a checkpoint belongs to nothing."""


@dataclass(frozen=True)
class CheckpointScan:
    """The newest checkpoint that verifies (None: there is none) and those that were set aside on the way to it."""

    path: Path | None
    set_aside: list[dict[str, str]]


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds besides tensors, fixed at the moment of saving."""

    step: int
    shapes: Mapping[str, tuple[int, ...]]
    state: Mapping[str, Any]
    fingerprints: Mapping[str, str]

    @classmethod
    def of(cls, state: RunState, engine: Engine, fingerprints: Mapping[str, str]) -> "Content":
        return cls(state.step, engine.shapes(), state.to_json(), dict(fingerprints))

    @property
    def moments(self) -> dict[str, tuple[int, ...]]:
        return {f"{moment}.{name}": shape for moment in MOMENTS for name, shape in self.shapes.items()}


def tensors_of(engine: Engine) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights, then moments. Every rank must run through them: where tensors are divided, all gather each of them."""
    return chain(engine.model_tensors(), engine.optimizer_tensors())


def save_checkpoint(
    run: RunDir, state: RunState, engine: Engine, *, attempt: int, fingerprints: Mapping[str, str]
) -> Path:
    """Write and commit the checkpoint of `state.step`; one that stands already is replaced.

    Tensors stream from the engine into the files, none is kept. Only the first rank calls this; the others meanwhile
    call `gather_for_save`. Raises as `write_checkpoint`.
    """
    tensors = tensors_of(engine)
    try:
        return write_checkpoint(run, Content.of(state, engine, fingerprints), tensors, attempt=attempt)
    except (OSError, Superseded):
        for _ in tensors:  # the other ranks are on their way through them
            pass
        raise


def write_checkpoint(
    run: RunDir, content: Content, tensors: Iterator[tuple[str, torch.Tensor]], *, attempt: int
) -> Path:
    """Commit a checkpoint of tensors in the order of `tensors_of`.

    Raises OSError where the disk does not take it, Superseded where a newer attempt has begun: nothing is left of it
    then.
    """
    final, allowed = run.checkpoint(content.step), partial(require_newest, run, attempt)
    allowed()
    known: dict[str, tuple[str, int]] = {}
    with committed_directory(final, attempt, allowed=allowed, known=known, step=content.step) as directory:
        known[MODEL] = write_tensors(directory / MODEL, content.shapes, islice(tensors, len(content.shapes)))
        known[OPTIMIZER] = write_tensors(directory / OPTIMIZER, content.moments, tensors)
        text = json.dumps({"state": content.state, "fingerprints": content.fingerprints}, indent=1)
        (directory / STATE).write_text(text + "\n", encoding="utf-8")
    return final


def gather_for_save(engine: Engine) -> None:
    """What every rank but the first does while that one saves: where tensors are divided, all gather each of them."""
    for _ in tensors_of(engine):
        pass


def newest_valid(run: RunDir) -> CheckpointScan:
    """Scan for the newest checkpoint whose every byte verifies; a damaged newer one is renamed to `<name>.corrupt`.

    No hint file is asked: the scan decides.
    """
    set_aside: list[dict[str, str]] = []
    for path in reversed(committed(run)):
        fault = verify(path)
        if fault is None:
            return CheckpointScan(path, set_aside)
        set_aside.append({"path": str(_set_aside(path)), "why": fault})
    return CheckpointScan(None, set_aside)


def committed(run: RunDir) -> list[Path]:
    """Directories with a checkpoint's name, oldest first; whether they verify is not asked here."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(path for path in run.checkpoints.iterdir() if path.is_dir() and step_of(path) is not None)


def load_state(path: Path) -> tuple[RunState, dict[str, str]]:
    """The run's state and the fingerprints that it belongs to."""
    raw: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    return RunState.from_json(raw["state"]), raw["fingerprints"]


def load_trained_parameters(path: Path) -> TensorFile:
    """The trained weights of a checkpoint by parameter name, fp32, read one at a time."""
    return TensorFile(path / MODEL)


def load_optimizer(path: Path) -> TensorFile:
    """The moments of a checkpoint as `<moment>.<parameter name>`, fp32, read one at a time."""
    return TensorFile(path / OPTIMIZER)


def require_same(stored: Mapping[str, str], expected: Mapping[str, str], path: Path) -> None:
    """Refuse a checkpoint that belongs to another model, data set or recipe. Raises RunFault with the difference.

    A checkpoint of an earlier version has fewer fingerprints: missing ones are not compared, except those of
    REQUIRED_FINGERPRINTS.
    """
    compared = [key for key in expected if key in stored or key in REQUIRED_FINGERPRINTS]
    if different := sorted(key for key in compared if stored.get(key) != expected[key]):
        shown = "; ".join(f"{key}: checkpoint {stored.get(key)}, this run {expected[key]}" for key in different)
        raise RunFault(
            f"the checkpoint belongs to another {', '.join(different)} ({shown})",
            where=str(path),
            remedy="resume with what the run was started with, or start a new run with another --run-dir",
        )


def retain(run: RunDir, keep_last: int, best_step: int | None) -> list[int]:
    """Delete all but the newest `keep_last` checkpoints and the best one; the steps that went.

    A checkpoint leaves its name first, in one rename, so that a crash never leaves half of one under it.
    """
    paths = committed(run)
    gone = [path for path in paths[:-keep_last] if step_of(path) != best_step]
    for path in gone:
        doomed = path.with_name(f"{path.name}.deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        fsync_directory(run.checkpoints)
        shutil.rmtree(doomed)
    return [step for path in gone if (step := step_of(path)) is not None]


def sweep(run: RunDir) -> None:
    """Remove what earlier attempts left half-written or half-deleted. Only for the one process that holds the run.

    The name of a half-written one goes first, at once: an earlier attempt that still lives cannot commit it any more.
    """
    if not run.checkpoints.is_dir():
        return
    for path in run.checkpoints.iterdir():
        if path.name.endswith(".deleted"):
            shutil.rmtree(path, ignore_errors=True)
        elif ".tmp." in path.name or ".old." in path.name:
            doomed = path.with_name(f"{path.name}.deleted")
            shutil.rmtree(doomed, ignore_errors=True)
            with suppress(FileNotFoundError):
                path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _set_aside(path: Path) -> Path:
    target = path.with_name(f"{path.name}.corrupt")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.corrupt-{number}")
    path.rename(target)
    fsync_directory(path.parent)
    return target

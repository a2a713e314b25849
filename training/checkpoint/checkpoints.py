"""Checkpoints: written atomically, found by scanning, verified before use. One format for every engine.

    step-00000100/   model.safetensors       trained weights by parameter name, fp32
                     optimizer.safetensors   exp_avg.<name>, exp_avg_sq.<name>, fp32
                     state.json              the run's state, and the fingerprints of model, data and recipe
                     manifest.json           bytes and SHA-256 of the above, written last

Random states are not stored: they are a function of (seed, step, rank), as the data position is of the step.
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
from tunesmith.progress import advance
from tunesmith.rundir.atomic import fsync_directory
from tunesmith.rundir.commit import committed_directory, verify
from tunesmith.rundir.fence import RunLost, Superseded, require_newest
from tunesmith.rundir.paths import RunDir, step_of
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.checkpoint.tensor_file import TensorFile, write_tensors
from tunesmith.training.engine.protocol import Engine
from tunesmith.training.optim.optimizer import MOMENTS

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
REQUIRED_FINGERPRINTS = ("model", "data")
"""Fingerprints that every checkpoint must have."""


@dataclass(frozen=True)
class CheckpointScan:
    """path: the newest valid checkpoint, None if there is none. set_aside: damaged newer ones, with path and reason."""

    path: Path | None
    set_aside: list[dict[str, str]]


@dataclass(frozen=True)
class Content:
    """Contents of a checkpoint other than its tensors, captured at the moment of saving."""

    step: int
    shapes: Mapping[str, tuple[int, ...]]
    state: Mapping[str, Any]
    fingerprints: Mapping[str, str]

    @classmethod
    def of(cls, state: RunState, engine: Engine, fingerprints: Mapping[str, str]) -> "Content":
        """Capture state and shapes of an engine."""
        return cls(state.step, engine.shapes(), state.to_json(), dict(fingerprints))

    @property
    def moments(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the moments by `<moment>.<parameter name>`."""
        return {f"{moment}.{name}": shape for moment in MOMENTS for name, shape in self.shapes.items()}


def tensors_of(engine: Engine) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights, then moments. Every rank must iterate over them: sharded tensors are gathered by all ranks."""
    return chain(engine.model_tensors(), engine.optimizer_tensors())


def save_checkpoint(
    run: RunDir, state: RunState, engine: Engine, *, attempt: int, fingerprints: Mapping[str, str]
) -> Path:
    """Write and commit the checkpoint of `state.step`, replacing an existing one.

    Tensors are streamed from the engine into the files. Only the first rank calls this; the others call
    `gather_for_save` at the same time. Raises as `write_checkpoint`.
    """
    tensors = tensors_of(engine)
    try:
        return write_checkpoint(run, Content.of(state, engine, fingerprints), tensors, attempt=attempt)
    except (OSError, Superseded, RunLost):
        for _ in tensors:  # the other ranks are iterating over them too
            pass
        raise


def write_checkpoint(
    run: RunDir, content: Content, tensors: Iterator[tuple[str, torch.Tensor]], *, attempt: int
) -> Path:
    """Commit a checkpoint of tensors in the order of `tensors_of`.

    Raises OSError if it cannot be written, Superseded if a newer attempt has started, RunLost if the run directory is
    no longer that of the run. Nothing remains then.
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
    """Take part in gathering sharded tensors while the first rank saves; called by all other ranks."""
    for _ in tensors_of(engine):
        advance()


def newest_valid(run: RunDir) -> CheckpointScan:
    """Scan for the newest checkpoint whose files match their hashes; damaged newer ones are renamed to
    `<name>.corrupt`. There is no `latest` file: only the scan decides."""
    set_aside: list[dict[str, str]] = []
    for path in reversed(committed(run)):
        fault = verify(path)
        if fault is None:
            return CheckpointScan(path, set_aside)
        set_aside.append({"path": str(_set_aside(path)), "why": fault})
    return CheckpointScan(None, set_aside)


def committed(run: RunDir) -> list[Path]:
    """Return the checkpoint directories, oldest first, without verifying them."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(path for path in run.checkpoints.iterdir() if path.is_dir() and step_of(path) is not None)


def load_state(path: Path) -> tuple[RunState, dict[str, str]]:
    """Return the run's state and the checkpoint's fingerprints."""
    raw: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    return RunState.from_json(raw["state"]), raw["fingerprints"]


def load_trained_parameters(path: Path) -> TensorFile:
    """Return the trained weights of a checkpoint by parameter name, fp32, read lazily."""
    return TensorFile(path / MODEL)


def load_optimizer(path: Path) -> TensorFile:
    """Return the moments of a checkpoint as `<moment>.<parameter name>`, fp32, read lazily."""
    return TensorFile(path / OPTIMIZER)


def require_same(stored: Mapping[str, str], expected: Mapping[str, str], path: Path) -> None:
    """Reject a checkpoint of another model, data set or recipe. Raises RunFault with the difference.

    A checkpoint of an earlier version has fewer fingerprints: missing ones are not compared, except those of
    REQUIRED_FINGERPRINTS.
    """
    compared = [key for key in expected if key in stored or key in REQUIRED_FINGERPRINTS]
    if different := sorted(key for key in compared if stored.get(key) != expected[key]):
        shown = "; ".join(f"{key}: checkpoint {stored.get(key)}, this run {expected[key]}" for key in different)
        raise RunFault(
            f"the checkpoint belongs to another {', '.join(different)} ({shown})",
            where=str(path),
            remedy="resume with the original model, data and recipe, or start a new run with another --run-dir",
        )


def retain(run: RunDir, keep_last: int, best_step: int | None) -> list[int]:
    """Delete all checkpoints except the newest `keep_last` and the best one. Returns the steps of deleted ones.

    A checkpoint is renamed before it is deleted, so that a crash never leaves a partial one under its name.
    """
    paths = committed(run)
    expired = [path for path in paths[:-keep_last] if step_of(path) != best_step]
    for path in expired:
        doomed = path.with_name(f"{path.name}.deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        fsync_directory(run.checkpoints)
        shutil.rmtree(doomed)
    return [step for path in expired if (step := step_of(path)) is not None]


def sweep(run: RunDir) -> None:
    """Remove partially written or deleted checkpoints of earlier attempts. Only for the process that holds the run.

    A partially written one is renamed first, so that an earlier attempt that is still running cannot commit it.
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

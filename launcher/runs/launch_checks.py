"""Checks before the first process starts: disk space, a writable directory, the device."""

import os
import shutil
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.errors import InputError
from tunesmith.launcher.backends.base import Backend
from tunesmith.launcher.planning.disk import disk_need
from tunesmith.report.wording import plural, size
from tunesmith.rundir.paths import RunDir, nearest_directory


def require_disk(plan: Plan, directory: Path) -> None:
    """Raise InputError if the run would fill the disk. directory: the run directory, which may not exist yet."""
    need, num_checkpoints = disk_need(plan)
    place = nearest_directory(directory.resolve())
    free = shutil.disk_usage(place).free
    if need <= free:
        return
    each = size(plan.compute.checkpoint_bytes)
    raise InputError(
        f"the run needs about {size(need)} of disk space, but {size(free)} are free",
        where=f"{place}: {plural(num_checkpoints, 'checkpoint')} of {each}, export, logs",
        remedy="free space, choose another disk with --run-dir, or lower checkpoint.keep_last",
    )


def require_usable(run: RunDir) -> None:
    """Raise InputError if the path is a file, is not writable, or contains files that do not belong to a run."""
    root = run.root
    if root.exists() and not root.is_dir():
        raise InputError("the run directory is a file", where=str(root), remedy="choose another --run-dir")
    place = root.resolve()
    while not place.is_dir():
        if place.exists():
            raise InputError(
                "a part of the run directory's path is a file", where=str(place), remedy="choose another --run-dir"
            )
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError("the run directory is not writable", where=str(place), remedy="choose another --run-dir")
    if root.is_dir() and not run.exists and not run.status.exists():
        others = [path.name for path in root.iterdir() if path not in (run.lock, run.logs, run.launch)]
        if others:
            raise InputError(
                f"the run directory contains other files, such as {sorted(others)[0]}",
                where=str(root),
                remedy="choose a new or empty directory with --run-dir",
            )


def require_device(plan: Plan, backend: Backend) -> None:
    """Raise InputError if the plan needs a GPU but the machine has none."""
    if plan.compute.device == "cuda" and not backend.hardware().gpus:
        raise InputError(
            "the run was planned for a GPU, but no GPU is visible",
            where=f"plan.json, {plan.compute.precision}",
            remedy="resume it on a machine with a GPU, check CUDA_VISIBLE_DEVICES, or start a new run here",
        )

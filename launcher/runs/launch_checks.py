"""What is checked before the first process starts: room on the disk, a directory that can be written, the device."""

import os
import shutil
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.errors import InputError
from tunesmith.launcher.backends.base import Backend
from tunesmith.launcher.planning.disk import disk_need
from tunesmith.report.wording import plural, size
from tunesmith.rundir.paths import RunDir


def require_disk(plan: Plan, directory: Path) -> None:
    """Raises InputError where the run would fill the disk; directory: where the run will live, there or not."""
    need, num_checkpoints = disk_need(plan)
    place = directory.resolve()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    if need <= free:
        return
    each = size(plan.compute.checkpoint_bytes)
    raise InputError(
        f"the run needs about {size(need)} of disk and {size(free)} are free",
        where=f"{place}: {plural(num_checkpoints, 'checkpoint')} of {each}, export, logs",
        remedy="free space, choose another disk with --run-dir, or lower checkpoint.keep_last",
    )


def require_usable(run: RunDir) -> None:
    """Raises InputError where the path is a file, cannot be written, or holds files that are not a run's."""
    root = run.root
    if root.exists() and not root.is_dir():
        raise InputError("the run directory is a file", where=str(root), remedy="choose another place with --run-dir")
    place = root.resolve()
    while not place.is_dir():
        if place.exists():
            raise InputError(
                "a part of the run directory's path is a file", where=str(place), remedy="choose another --run-dir"
            )
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            "the run directory cannot be written", where=str(place), remedy="choose another place with --run-dir"
        )
    if root.is_dir() and not run.exists and not run.status.exists():
        others = [path.name for path in root.iterdir() if path not in (run.lock, run.logs, run.launch)]
        if others:
            raise InputError(
                f"the run directory holds other files, such as {sorted(others)[0]}",
                where=str(root),
                remedy="choose a new or an empty directory with --run-dir",
            )


def require_device(plan: Plan, backend: Backend) -> None:
    """Raises InputError where a plan for a GPU is taken up on a machine without one."""
    if plan.compute.device == "cuda" and not backend.hardware().gpus:
        raise InputError(
            "the run was planned for a GPU, and none can be seen",
            where=f"plan.json, {plan.compute.precision}",
            remedy="resume it on a machine with a GPU, check CUDA_VISIBLE_DEVICES, or start a new run here",
        )

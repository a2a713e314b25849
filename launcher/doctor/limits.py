"""Limits of this process, and shared memory."""

import resource
import shutil
from pathlib import Path

from tunesmith.launcher.doctor.finding import Finding, Result

MIN_FILES, FEW_FILES = 1024, 4096
"""Open files: a node of a Ray cluster opens some hundreds for each of its processes. Below the first number an error,
below the second a warning. Estimates."""
MIN_SHM_BYTES, SMALL_SHM_BYTES = 128 << 20, 1 << 30
"""Docker's default is 64 MiB, in which NCCL fails to start on several GPUs."""
MANY_PROCESSES = 4096
SHM = Path("/dev/shm")
INFINIBAND = Path("/sys/class/infiniband")


def check_limits(infiniband: Path = INFINIBAND) -> Result:
    """Open files, processes, and locked memory if there is InfiniBand, as `ulimit` shows them."""
    files, processes = _soft(resource.RLIMIT_NOFILE), _soft(resource.RLIMIT_NPROC)
    findings = []
    if files is not None and files < FEW_FILES:
        severity = "error" if files < MIN_FILES else "warning"
        what, why = f"only {files:,} open files are allowed", "Ray, data workers and the server open thousands"
        remedy = "`ulimit -n 65536`, permanently in /etc/security/limits.conf or the service's LimitNOFILE"
        findings.append(Finding("limits", severity, what, why, remedy))
    if processes is not None and processes < MANY_PROCESSES:
        what, why = f"only {processes:,} processes and threads are allowed", "torch and Ray start hundreds per GPU"
        findings.append(Finding("limits", "warning", what, why, "`ulimit -u unlimited`"))
    locked = _soft(resource.RLIMIT_MEMLOCK)
    if infiniband.is_dir() and any(infiniband.iterdir()) and locked is not None:
        what, why = f"locked memory is limited to {locked >> 10:,} KiB", "InfiniBand registers memory by locking it"
        remedy = "`ulimit -l unlimited`; under Slurm PropagateResourceLimitsExcept=MEMLOCK"
        findings.append(Finding("limits", "warning", what, why, remedy))
    return Result("limits", f"{_text(files)} open files, {_text(processes)} processes", tuple(findings))


def check_shared_memory(path: Path = SHM) -> Result:
    """The size of the file system for shared memory, and that it is writable."""
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        what = f"{path} cannot be used: {error.strerror}"
        remedy = f"mount a tmpfs at {path}"
        finding = Finding("shared-memory", "error", what, "processes of a run exchange data through it", remedy)
        return Result("shared-memory", str(path), (finding,))
    seen = f"{usage.free >> 20:,} of {usage.total >> 20:,} MiB free in {path}"
    if usage.free >= SMALL_SHM_BYTES:
        return Result("shared-memory", seen)
    severity = "error" if usage.free < MIN_SHM_BYTES else "warning"
    why = "NCCL, data workers and Ray's object store exchange data through it and fail when it is full"
    remedy = "in containers --shm-size=16g or --ipc=host; otherwise delete old files there or mount it with more"
    return Result("shared-memory", seen, (Finding("shared-memory", severity, f"only {seen}", why, remedy),))


def _soft(limit: int) -> int | None:
    value = resource.getrlimit(limit)[0]
    return None if value == resource.RLIM_INFINITY else value


def _text(limit: int | None) -> str:
    return "unlimited" if limit is None else f"{limit:,}"

"""A directory in which runs are written: writable, enough space, fast enough."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from tunesmith.launcher.doctor.finding import Finding, Result, Severity
from tunesmith.rundir.paths import nearest_directory

MIN_FREE_BYTES, LITTLE_FREE_BYTES = 1 << 30, 20 << 30
"""Below the first the smallest run fails; a LoRA run of a 7B model with its export needs about the second."""
PROBE_BYTES = 64 << 20
SLOW_BYTES_PER_S = 50e6
"""Half the speed of a hard disk: a checkpoint of 16 GB takes 5 minutes."""
MIN_FREE_FILES = 10_000


def check_disk(directory: Path, slow_bytes_per_s: float = SLOW_BYTES_PER_S) -> Result:
    """Examine a directory, or the nearest that exists above it; writes, syncs and deletes a file of 64 MiB."""
    place = nearest_directory(directory)
    findings: list[Finding] = []

    def add(severity: Severity, what: str, why: str, remedy: str) -> None:
        findings.append(Finding("disk", severity, what, why, remedy))

    free = shutil.disk_usage(place).free
    seen = f"{free / 1e9:,.1f} GB free in {place}"
    if free < LITTLE_FREE_BYTES:
        why = "checkpoints and exports do not fit; `tunesmith plan` shows how much a run needs"
        add("error" if free < MIN_FREE_BYTES else "warning", f"only {seen}", why, "free space, or use --run-dir")
    files = os.statvfs(place)
    if files.f_files and files.f_favail < MIN_FREE_FILES:
        why = "no file can be created although there is space"
        add("warning", f"only {files.f_favail:,} files (inodes) can be created in {place}", why, "delete old files")
    num_bytes = min(PROBE_BYTES, free // 4)
    try:
        seconds = _write(place, num_bytes)
    except OSError as error:
        remedy = "grant write permission, remount, or use another directory (--path here, --run-dir for a run)"
        add("error", f"{place} cannot be written: {error.strerror}", "runs store their results there", remedy)
        return Result("disk", seen, tuple(findings))
    speed = num_bytes / max(seconds, 1e-9)
    if num_bytes and speed < slow_bytes_per_s:
        why = "every checkpoint stops or delays the training"
        add("warning", f"{place} writes only {speed / 1e6:,.0f} MB/s", why, "use a local or parallel file system")
    return Result("disk", f"{seen}, writes {speed / 1e6:,.0f} MB/s", tuple(findings))


def _write(place: Path, num_bytes: int) -> float:
    """Seconds to write and sync a file of random bytes, which no file system can compress."""
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=place) as file:
        start = time.perf_counter()
        for written in range(0, num_bytes, len(block)):
            file.write(block[: num_bytes - written])
        file.flush()
        os.fsync(file.fileno())
        return time.perf_counter() - start

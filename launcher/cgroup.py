"""Limits that a container, a batch system or systemd sets on this process, from the control group files."""

from pathlib import Path

UNLIMITED = 1 << 60
"""Version 1 writes a number near 2**63 if there is no limit."""


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPU quota in cores, the lowest of all groups that contain this process; None if there is none."""
    quotas = []
    for folder in _folders(root, "cpu"):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            quotas.append(int(words[0]) / int(words[1]))
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes left below the lowest memory limit of this process; None if there is none.

    File cache counts as free: the kernel drops it before the limit is reached.
    """
    left = []
    for folder in _folders(root, "memory"):
        for limit_file, used_file, cache_key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(folder / limit_file)
            if limit is not None and limit < UNLIMITED:
                used = (_number(folder / used_file) or 0) - _entry(folder / "memory.stat", cache_key)
                left.append(max(0, limit - max(0, used)))
    return min(left, default=None)


def oom_kills(root: Path = Path("/")) -> int:
    """Number of out-of-memory kills so far, on the machine or in the groups of this process."""
    counts = [_entry(root / "proc/vmstat", "oom_kill")]
    for folder in _folders(root, "memory"):
        counts += [_entry(folder / "memory.events", "oom_kill"), _entry(folder / "memory.oom_control", "oom_kill")]
    return max(counts)


def _folders(root: Path, controller: str) -> list[Path]:
    """The groups that contain this process, innermost first: of one controller (v1) and of the unified tree (v2)."""
    folders: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, inner = line.split(":", 2)
        if number == "0" and not controllers:
            bases = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            bases = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        for base in bases:
            path = base / inner.lstrip("/")
            # In a container the path may be the host's and not exist: the root of the mount is then the group.
            folders += [folder for folder in (path, *path.parents) if folder.is_relative_to(base) and folder.is_dir()]
    return list(dict.fromkeys(folders))


def _entry(path: Path, key: str) -> int:
    """A number from a `key value` file; 0 if it is missing."""
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == key and words[1].isdigit():
            return int(words[1])
    return 0


def _number(path: Path) -> int | None:
    try:
        return int(_read(path))
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""

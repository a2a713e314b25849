"""What this machine offers to one run: cores, memory, GPUs, bf16. Read from the system's files, without torch."""

import csv
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tunesmith.launcher import cgroup

ROOT = Path("/")
NVIDIA_SMI_S = 20.0


@dataclass(frozen=True)
class Gpu:
    """memory_bytes: of the whole device. free_bytes: not in use when asked. capability: such as (9, 0)."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Hardware:
    """cores: that this process may use, as a share of time where a quota is set (2.5 cores count as 2).
    memory_bytes: free for a new process now. The *_source tell where a number comes from."""

    cores: int
    cores_source: str
    memory_bytes: int
    memory_source: str
    cpu_flags: frozenset[str] = frozenset()
    gpus: tuple[Gpu, ...] = ()
    torch_has_cuda: bool = False


def detect_hardware() -> Hardware:
    cores, cores_source = count_cores()
    memory_bytes, memory_source = free_memory()
    gpus = tuple(find_gpus())
    return Hardware(
        cores, cores_source, memory_bytes, memory_source, cpu_flags(), gpus, bool(gpus) and torch_is_built_for_cuda()
    )


def count_cores(root: Path = ROOT) -> tuple[int, str]:
    """Physical cores that the scheduler lets this process run on, at most what a cgroup's quota of time amounts to."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    # Two threads of one core share its multiplier units: for matrix products they count as one.
    siblings = {_read(root / f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") or str(n) for n in allowed}
    cores, source = len(siblings), "cores of this machine"
    if len(allowed) < (os.cpu_count() or 1):
        source = "cores this process is bound to"
    quota = cgroup.cpu_quota(root)
    if quota is not None and quota < cores:
        cores, source = max(1, int(quota)), "the control group's share of time"
    return cores, source


def free_memory(root: Path = ROOT) -> tuple[int, str]:
    """Bytes that a new process may use: free on the machine, at most what the cgroup leaves."""
    free, source = _memory_available(root), "free on this machine"
    left = cgroup.memory_left(root)
    if left is not None and left < free:
        free, source = left, "left by the control group's limit"
    return free, source


def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """Instruction sets of the first core, in the kernel's words (`avx2`, `amx_bf16`)."""
    match = re.search(r"^flags\s*:(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()


def find_gpus() -> list[Gpu]:
    """NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves visible, in its order; empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=index,uuid,name,memory.total,memory.free,compute_cap"
    try:
        result = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=NVIDIA_SMI_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(result.stdout, os.environ.get("CUDA_VISIBLE_DEVICES")) if result.returncode == 0 else []


def parse_gpus(text: str, visible: str | None) -> list[Gpu]:
    """The GPUs of nvidia-smi's table (index, uuid, name, MiB in all, MiB free, capability), as `visible` chooses."""
    found: dict[str, Gpu] = {}
    for cells in csv.reader(text.splitlines(), skipinitialspace=True):
        try:
            index, uuid, name, total, free, capability = (cell.strip() for cell in cells)
            major, minor = capability.split(".")
            gpu = Gpu(name, int(total) << 20, int(free) << 20, (int(major), int(minor)))
        except ValueError:  # a device that reports [N/A] cannot be planned with
            continue
        found[index], found[uuid] = gpu, gpu
    if visible is None:
        return [gpu for key, gpu in found.items() if key.isdigit()]
    chosen = []
    for word in (word.strip() for word in visible.split(",")):
        match = next((key for key in found if key == word or (key.startswith("GPU-") and key.startswith(word))), None)
        if not word or match is None:  # as CUDA does: the first unknown device ends the list
            break
        chosen.append(found[match])
    return chosen


def torch_is_built_for_cuda() -> bool:
    """Whether the installed torch can use a GPU; read from its version file, since importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return re.search(r"^cuda\b.*=\s*['\"]", _read(Path(spec.origin).parent / "version.py"), re.MULTILINE) is not None


def _memory_available(root: Path) -> int:
    match = re.search(r"^MemAvailable:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    if match:
        return int(match.group(1)) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

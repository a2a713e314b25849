"""Hardware available to a run: cores, memory, GPUs, bf16. Read from system files, without torch."""

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tunesmith.launcher import cgroup
from tunesmith.launcher.product_rates import BF16_FLAGS, ProductRates, product_rates

ROOT = Path("/")
NVIDIA_SMI_S = 20.0
TORCH_S = 120.0
DRIVER = "proc/driver/nvidia/version"
"""Present on machines with an NVIDIA driver."""
OLD_CAPABILITY = (8, 0)
"""Not every build of torch supports GPUs below this one."""
TORCH_QUERY = """
import json, torch
for i in range(torch.cuda.device_count()):
    free, total = torch.cuda.mem_get_info(i)
    print(json.dumps([torch.cuda.get_device_name(i), total, free, torch.cuda.get_device_capability(i)]))
"""


TORCH_ARCHITECTURES = "import json, torch; print(json.dumps(torch.cuda.get_arch_list()))"


@dataclass(frozen=True)
class Gpu:
    """memory_bytes: total. free_bytes: free at the time of the query. capability: such as (9, 0)."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Hardware:
    """cores: usable by this process, rounded down if a CPU quota is set (2.5 cores count as 2).
    memory_bytes: currently available to a new process. *_source: where a number comes from. torch_architectures: for
    which the installed torch was built, such as sm_75; queried for older GPUs only, empty if unknown."""

    cores: int
    cores_source: str
    memory_bytes: int
    memory_source: str
    cpu_flags: frozenset[str] = frozenset()
    gpus: tuple[Gpu, ...] = ()
    torch_has_cuda: bool = False
    torch_architectures: tuple[str, ...] = ()
    product_rates: ProductRates | None = None
    """Of matrix products on the CPU; None: not measured."""


def detect_hardware(*, measure: bool = False) -> Hardware:
    """Detect this machine's hardware. measure: also the rates of matrix products, if torch uses a CPU with bf16
    instructions."""
    cores, cores_source = count_cores()
    memory_bytes, memory_source = free_memory()
    gpus = tuple(find_gpus())
    flags, has_cuda = cpu_flags(), bool(gpus) and torch_is_built_for_cuda()
    is_old = has_cuda and any(gpu.capability < OLD_CAPABILITY for gpu in gpus)
    return Hardware(
        *(cores, cores_source, memory_bytes, memory_source, flags, gpus, has_cuda),
        torch_architectures=query_architectures() if is_old else (),
        product_rates=None if has_cuda else product_rates(flags, measure=measure and bool(flags & BF16_FLAGS)),
    )


def measure_products() -> None:
    """Measure the rates of matrix products on this CPU, unless they are in the cache or there is a GPU to train on.
    This takes seconds, once per kind of CPU: plans then have an estimate of time."""
    if not (find_gpus() and torch_is_built_for_cuda()):
        product_rates(cpu_flags())


def count_cores(root: Path = ROOT) -> tuple[int, str]:
    """Physical cores on which this process may run, limited by the CPU quota of its control group."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    # Two hardware threads share the multipliers of a core: for matrix products they count as one.
    siblings = {_read(root / f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") or str(n) for n in allowed}
    cores, source = len(siblings), "cores of this machine"
    if len(allowed) < (os.cpu_count() or 1):
        source = "cores that this process is bound to"
    quota = cgroup.cpu_quota(root)
    if quota is not None and quota < cores:
        cores, source = max(1, int(quota)), "CPU quota of the control group"
    return cores, source


def free_memory(root: Path = ROOT) -> tuple[int, str]:
    """Bytes available to a new process: free on the machine, limited by the control group."""
    free, source = _memory_available(root), "free on this machine"
    left = cgroup.memory_left(root)
    if left is not None and left < free:
        free, source = left, "left below the limit of the control group"
    return free, source


def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """Instruction sets of the first core, by the kernel's names (`avx2`, `amx_bf16`)."""
    match = re.search(r"^flags\s*:(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()


def find_gpus(root: Path = ROOT) -> list[Gpu]:
    """NVIDIA GPUs that a CUDA process here can use, in its order: those selected by CUDA_VISIBLE_DEVICES; empty without
    a driver.

    nvidia-smi lists whole GPUs. Where parts of a GPU are selected (MIG), or where it is not installed although there is
    a driver, as in some containers, a process of its own queries torch.
    """
    visible, program = os.environ.get("CUDA_VISIBLE_DEVICES"), shutil.which("nvidia-smi")
    if program is None:
        return _query_torch() if (root / DRIVER).exists() else []
    query = "--query-gpu=index,uuid,name,memory.total,memory.free,compute_cap,mig.mode.current"
    try:
        result = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=NVIDIA_SMI_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if result.returncode != 0:
        return []
    if "MIG-" in (visible or "") or any(line.rstrip().endswith("Enabled") for line in result.stdout.splitlines()):
        return _query_torch()
    return parse_gpus(result.stdout, visible)


def _query_torch() -> list[Gpu]:
    return parse_torch_gpus(_output_of(TORCH_QUERY))


def query_architectures() -> tuple[str, ...]:
    """The architectures that the installed torch was built for; empty if a new process cannot tell."""
    lists = [json.loads(line) for line in _output_of(TORCH_ARCHITECTURES).splitlines() if line.startswith("[")]
    return tuple(map(str, lists[-1])) if lists else ()


def _output_of(script: str) -> str:
    """Run a script that imports torch, which takes seconds, in a process of its own."""
    command = [sys.executable, "-P", "-c", script]  # -P: not the modules of the working directory
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TORCH_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def parse_torch_gpus(text: str) -> list[Gpu]:
    """Parse the output of TORCH_QUERY: one JSON list per device (name, total bytes, free bytes, capability)."""
    gpus = []
    for line in text.splitlines():
        if line.startswith("["):
            name, total, free, (major, minor) = json.loads(line)
            gpus.append(Gpu(name, total, free, (major, minor)))
    return gpus


def parse_gpus(text: str, visible: str | None) -> list[Gpu]:
    """Parse nvidia-smi's table (index, uuid, name, total MiB, free MiB, capability, MIG mode); `visible` selects and
    orders."""
    gpus: dict[str, Gpu] = {}
    for cells in csv.reader(text.splitlines(), skipinitialspace=True):
        try:
            index, uuid, name, total, free, capability, *_ = (cell.strip() for cell in cells)
            major, minor = capability.split(".")
            gpu = Gpu(name, int(total) << 20, int(free) << 20, (int(major), int(minor)))
        except ValueError:  # a device that reports [N/A] cannot be used in a plan
            continue
        gpus[index], gpus[uuid] = gpu, gpu
    if visible is None:
        return [gpu for key, gpu in gpus.items() if key.isdigit()]
    selected = []
    for name in (name.strip() for name in visible.split(",")):
        match = next((key for key in gpus if key == name or (key.startswith("GPU-") and key.startswith(name))), None)
        if not name or match is None:  # like CUDA: the first unknown device ends the list
            break
        selected.append(gpus[match])
    return selected


def torch_is_built_for_cuda() -> bool:
    """Whether the installed torch supports CUDA, read from its version file, since importing torch takes seconds."""
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

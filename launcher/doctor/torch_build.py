"""The installed torch: it can be imported, computes, and fits the driver and the GPUs. Runs in its own process."""

import json
import sys
from collections.abc import Sequence

from tunesmith.launcher.doctor.finding import Finding, Result
from tunesmith.launcher.doctor.programs import output_of
from tunesmith.launcher.hardware import Gpu

IMPORT_S = 120.0
QUERY = """
import json, torch
assert float((torch.ones(2, 2) @ torch.ones(2, 2)).sum()) == 8.0
has_gpu = torch.cuda.is_available()
if has_gpu:
    ones = torch.ones(2, 2, device="cuda")
    assert float((ones @ ones).sum()) == 8.0
print(json.dumps([torch.__version__, torch.version.cuda, has_gpu, torch.cuda.get_arch_list()]))
"""


def check_torch(gpus: Sequence[Gpu], python: str = sys.executable, timeout_s: float = IMPORT_S) -> Result:
    """Import torch, multiply two matrices (on the GPU too, if there is one) and compare its build with the GPUs."""
    output, failure = output_of([python, "-P", "-c", QUERY], timeout_s)
    lines = [line for line in output.splitlines() if line.startswith("[")]
    if failure or not lines:
        what = f"torch cannot be used: {failure or 'no output'}"
        remedy = f"run `{python} -c 'import torch'` and reinstall torch"
        return Result("torch", "torch", (Finding("torch", "error", what, "every run needs torch", remedy),))
    version, cuda, has_gpu, architectures = json.loads(lines[-1])
    seen = f"torch {version}, " + (f"built for CUDA {cuda}" if cuda else "built for CPUs")
    finding = _compare(seen, cuda, has_gpu, architectures, gpus)
    return Result("torch", seen, (finding,) if finding else ())


def _compare(
    seen: str, cuda: str | None, has_gpu: bool, architectures: Sequence[str], gpus: Sequence[Gpu]
) -> Finding | None:
    if not gpus:
        return None
    if not cuda:
        what = f"{seen}, but this machine has {len(gpus)} GPUs"
        remedy = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        return Finding("torch", "error", what, "runs would use the CPU only", remedy)
    if not has_gpu:
        what = f"{seen}, cannot use the GPUs of this machine"
        remedy = f"install a driver that supports CUDA {cuda} (see `nvidia-smi`), or a torch built for an older CUDA"
        return Finding("torch", "error", what, "runs would use the CPU only", remedy)
    oldest = min(gpus, key=lambda gpu: gpu.capability)
    built = [int(name.removeprefix("sm_").rstrip("af")) for name in architectures if name.startswith("sm_")]
    major, minor = oldest.capability
    if built and 10 * major + minor < min(built):
        what = f"{seen}, does not support {oldest.name} (capability {major}.{minor})"
        remedy = "install a torch built for this GPU, or hide it with CUDA_VISIBLE_DEVICES"
        return Finding("torch", "error", what, "kernels cannot run on this GPU", remedy)
    return None

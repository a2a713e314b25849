"""Versions, the device, and the rates that other stages are compared with."""

import importlib.metadata
import platform
import shutil
import subprocess
from typing import Any

import torch

from benchmarks.device_time import kernel_seconds
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting

PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "safetensors", "peft", "accelerate", "pydantic", "bitsandbytes"),
    *("deepspeed", "liger-kernel", "ray"),
)


def run(setting: Setting, record: Record) -> None:
    record.figure("gpu", torch.cuda.get_device_name() if setting.device == "cuda" else "none (rehearsal)")
    record.figure("versions", versions())
    if setting.device == "cuda":
        record.figure("device", device())
    rates = measure_rates(setting)
    setting.keep_rates(**rates)
    for name, value in rates.items():
        record.figure(name, value)
        record.check(f"{name} is positive", value, "at least", 1.0)
    record.figure("launch_us", 1e6 * launch_seconds(setting))


def versions() -> dict[str, str]:
    """Versions of Python, packages, driver and CUDA; packages that are not installed are left out."""
    known = {"python": platform.python_version(), "cuda": torch.version.cuda or "none", "driver": driver()}
    for package in PACKAGES:
        try:
            known[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    known["torch"] = torch.__version__  # with the build: +cpu, +cu130
    return known


def driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown: no nvidia-smi"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip().splitlines()[0] if result.returncode == 0 and result.stdout.strip() else "unknown"


def device() -> dict[str, Any]:
    of = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": of.name,
        "capability": f"{of.major}.{of.minor}",
        "count": torch.cuda.device_count(),
        "memory_bytes": of.total_memory,
        "multiprocessors": of.multi_processor_count,
        "cache_bytes": of.L2_cache_size,
    }


def measure_rates(setting: Setting) -> dict[str, float]:
    """Return torch's copy rate (bytes/s, read and written) and the rate of a large product (FLOP/s)."""
    timer, size = setting.timer(), setting.size(8192, 256)
    source = torch.ones(setting.size(1 << 29, 1 << 20), dtype=torch.float32, device=setting.device)
    target = torch.empty_like(source)
    seconds = kernel_seconds(timer, [lambda: target.copy_(source)], repeats=10)
    dtype = setting.size(torch.bfloat16, torch.float32)
    left, right = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))
    product = torch.empty(size, size, device=setting.device, dtype=dtype)
    product_s = kernel_seconds(timer, [lambda: torch.mm(left, right, out=product)], repeats=10)
    return {"copy_bytes_per_s": 2 * source.nbytes / seconds, "gemm_flops": 2 * size**3 / product_s}


def launch_seconds(setting: Setting) -> float:
    """Host seconds of a launch of a tiny operation."""
    import time

    tiny = torch.zeros(1, device=setting.device)
    for _ in range(10):
        tiny.add_(1.0)
    setting.synchronize()
    started = time.perf_counter()
    for _ in range(1000):
        tiny.add_(1.0)
    seconds = time.perf_counter() - started
    setting.synchronize()
    return seconds / 1000

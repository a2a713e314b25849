"""How fast this machine's CPU multiplies matrices in fp32 and bf16: measured once per kind of CPU, kept in the cache.
The precision of a run and the estimated duration of its steps follow from it.

Instructions alone do not decide: how much bf16 gains differs between CPUs, libraries and virtual machines. The
measurement runs in a process of its own, since the launcher does not import torch.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tunesmith.data.cache import cache_root

BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
"""Instructions that multiply in bf16. Without them torch emulates it, many times slower than fp32."""
LIMIT_S = 120.0
"""Most of it is importing torch from a slow disk; the products take a fraction of a second."""
CPUINFO = Path("/proc/cpuinfo")
FACTS = ("vendor_id", "cpu family", "model", "model name", "stepping")
QUERY = """
import json, sys, time, torch
torch.set_num_threads(1)
best = {}
operands = [(torch.randn(512, 1024, dtype=dtype), torch.randn(1024, 1024, dtype=dtype))
            for dtype in (torch.float32, torch.bfloat16)[:int(sys.argv[1])]]
for attempt in range(7):  # in turn, since the clock of a shared CPU changes; the first calls also create the kernels
    for left, right in operands:
        start = time.process_time()
        left @ right
        elapsed = time.process_time() - start
        best[left.dtype] = min(elapsed, best.get(left.dtype, elapsed))
print(json.dumps([2 * 512 * 1024 * 1024 / max(seconds, 1e-6) / 1e9 for seconds in best.values()]))
"""


@dataclass(frozen=True)
class ProductRates:
    """Matrix products with one thread, in GFLOP/s. bf16: 0 if the CPU has no bf16 instructions."""

    fp32: float
    bf16: float


def product_rates(flags: frozenset[str], cpuinfo: Path = CPUINFO, *, measure: bool = True) -> ProductRates | None:
    """Return the rates of this machine's CPU from the cache, measured if they are not in it. None if they cannot be
    measured, or are not in the cache and need not be.

    flags: instruction sets of the CPU; without bf16 instructions only fp32 is measured. cpuinfo: names the model, by
    which rates are kept.
    """
    kept = cache_root() / "product-rates" / f"{cpu_key(cpuinfo)}.json"
    try:
        return ProductRates(**json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass  # not measured yet, or damaged
    rates = _measured(bool(flags & BF16_FLAGS)) if measure else None
    if rates is not None:
        _keep(kept, rates)
    return rates


def cpu_key(cpuinfo: Path = CPUINFO) -> str:
    """Identifies the model of the CPU and the version of torch."""
    try:
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    except OSError:
        first = ""
    facts = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", first, re.MULTILINE))
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = ""
    text = json.dumps([*(facts.get(name, "") for name in FACTS), facts.get("flags", ""), torch])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _measured(has_bf16: bool) -> ProductRates | None:
    # -P: not the modules of the working directory
    command = [sys.executable, "-P", "-c", QUERY, "2" if has_bf16 else "1"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        fp32, bf16 = json.loads(result.stdout) if has_bf16 else (*json.loads(result.stdout), 0.0)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    return ProductRates(round(float(fp32), 1), round(float(bf16), 1))


def _keep(path: Path, rates: ProductRates) -> None:
    """Write the rates, whole or not at all. Without a writable cache they are measured again for the next plan."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(rates)), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        return

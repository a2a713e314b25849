"""Machine description, statistics and storage of benchmark results."""

import json
import os
import platform
import re
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from tunesmith.launcher.hardware import cpu_flags

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    import torch

    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    match = re.search(r"model name\s*: (.+)", info)
    facts = {
        "cpu": match[1] if match else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def cpu_kind() -> str:
    """Return the kind of this CPU by its fastest instructions for matrix products: amx, avx512-bf16, avx512 or avx2."""
    flags = cpu_flags()
    kinds = {"amx_bf16": "amx", "avx512_bf16": "avx512-bf16", "avx512f": "avx512"}
    return next((kind for flag, kind in kinds.items() if flag in flags), "avx2")


def peak_bytes() -> int:
    """Return the peak resident memory of this process. Not from getrusage, where a child inherits its parent's peak."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(match[1]) * 1024 if match else 0


def reset_peak() -> None:
    """Reset the peak of `peak_bytes` to the current resident memory."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def spread(values: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": len(values)}


def shares(seconds: dict[str, float], max_entries: int = 10) -> list[dict[str, Any]]:
    """Return a profile: the largest entries and their fraction of the total."""
    total = sum(seconds.values())
    longest = sorted(seconds.items(), key=lambda item: -item[1])[:max_entries]
    return [{"where": where, "share": round(of / total, 3)} for where, of in longest]


def remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def write(name: str, results: dict[str, Any], table: list[list[str]], directory: Path = RESULTS) -> None:
    """Write NAME.json and NAME.md to the directory, with the machine description, and print the table."""
    directory.mkdir(exist_ok=True)
    about = machine()
    (directory / f"{name}.json").write_text(
        json.dumps({"machine": about, **results}, indent=2) + "\n", encoding="utf-8"
    )
    head, *rows = table
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    description = ", ".join(f"{key} {value}" for key, value in about.items())
    text = f"`{' '.join(results['command'])}`\n\n{description}\n\n" + "\n".join(lines) + "\n"
    (directory / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)

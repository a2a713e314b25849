"""What a number was measured on, the spread of a number, and where results are kept."""

import json
import os
import platform
import re
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    import torch

    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.+)", info)
    facts = {
        "cpu": found[1] if found else platform.processor(),
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


def peak_bytes() -> int:
    """The highest resident memory of this process so far. Not getrusage: a child starts there with its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0


def forget_peak() -> None:
    """From now on `peak_bytes` starts at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": len(values)}


def shares(seconds: dict[str, float], most: int = 10) -> list[dict[str, Any]]:
    """A profile: what takes most of the time, and its share of all of it."""
    total = sum(seconds.values())
    longest = sorted(seconds.items(), key=lambda item: -item[1])[:most]
    return [{"where": where, "share": round(of / total, 3)} for where, of in longest]


def remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def write(name: str, results: dict[str, Any], table: list[list[str]], directory: Path = RESULTS) -> None:
    """NAME.json and NAME.md in the directory, with the machine on top of both; the table also on the screen."""
    directory.mkdir(exist_ok=True)
    about = machine()
    (directory / f"{name}.json").write_text(
        json.dumps({"machine": about, **results}, indent=2) + "\n", encoding="utf-8"
    )
    head, *rows = table
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    told = ", ".join(f"{key} {value}" for key, value in about.items())
    text = f"`{' '.join(results['command'])}`\n\n{told}\n\n" + "\n".join(lines) + "\n"
    (directory / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)

"""What earlier runs on this machine needed, compared with their plans: kept in the cache, shown by later plans.

It changes no plan: the same recipe gets the same micro-batches on a machine that has trained before as on another.
"""

import hashlib
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.configs.plan import Plan
from tunesmith.data.cache import cache_root
from tunesmith.launcher.product_rates import cpu_key
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import StepEvent
from tunesmith.rundir.json_lines import LineFile, read_lines
from tunesmith.rundir.paths import RunDir

MAX_RUNS = 20
"""Of one kind that are read, the newest."""


@dataclass(frozen=True)
class EarlierRuns:
    """Earlier runs of one kind on this machine. memory, time: medians of measured / estimated; None: not both known."""

    num_runs: int
    memory: float | None
    time: float | None


def record_measured(run: RunDir, plan: Plan) -> None:
    """Add a run to the file for such runs; nothing if no step was measured, or if the cache cannot be written."""
    steps = list(read_events(run.events, StepEvent))
    peaks = [event.peak_memory_bytes for event in steps if event.peak_memory_bytes]
    seconds = [event.step_s for event in steps[1:] if event.step_s]
    if not peaks:
        return
    value = {
        "peak_bytes": max(peaks),
        "estimated_peak_bytes": plan.compute.estimated_peak_bytes,
        "step_s": statistics.median(seconds) if seconds else None,
        "estimated_step_s": plan.compute.estimated_step_s,
        "tunesmith_version": plan.tunesmith_version,
    }
    path = _file_of(plan)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = LineFile(path)
        file.append(value)
        file.close()
    except OSError:
        return


def earlier_runs_like(plan: Plan) -> EarlierRuns | None:
    """What runs of the plan's kind needed on this machine; None if there were none."""
    runs = list(read_lines(_file_of(plan)))[-MAX_RUNS:]
    if not runs:
        return None
    return EarlierRuns(len(runs), _ratio(runs, "peak_bytes"), _ratio(runs, "step_s"))


def _ratio(runs: list[dict[str, Any]], key: str) -> float | None:
    """Median of measured / estimated, of the runs that have both."""
    pairs = [(run.get(key), run.get(f"estimated_{key}")) for run in runs]
    ratios = [
        measured / estimated
        for measured, estimated in pairs
        if isinstance(measured, int | float) and isinstance(estimated, int | float) and measured > 0 and estimated > 0
    ]
    return statistics.median(ratios) if ratios else None


def _file_of(plan: Plan) -> Path:
    """Of the machine, and of what determines memory and speed: device, precision, method, sharding, architecture."""
    compute = plan.compute
    device = next((choice.reason for choice in plan.choices if choice.key == "device"), "")
    machine = device if compute.device == "cuda" else cpu_key()
    kind = [
        *(machine, compute.device, compute.precision, compute.world_size, compute.gradient_checkpointing),
        *(plan.recipe.task, plan.recipe.method.kind, plan.parallelism.zero_stage, plan.model.model_type),
    ]
    name = hashlib.sha256("\n".join(map(str, kind)).encode()).hexdigest()[:16]
    return cache_root() / "measured-runs" / f"{name}.jsonl"

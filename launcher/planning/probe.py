"""`plan --probe`: trains two steps of the longest batch on this machine and compares them with the plan's estimates."""

import os
import re
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.errors import InputError, RunFault
from tunesmith.launcher.backends.local import started_ranks
from tunesmith.report.wording import count, duration, plural, size
from tunesmith.rundir.json_lines import parse_line
from tunesmith.rundir.paths import RunDir

PROBE = "tunesmith.training.probe"
LIMIT_S = 1800.0
"""Loading a large model takes minutes; a probe that takes longer than this is ended."""
POLL_S = 0.1
_ERROR = re.compile(r"(error: |[\w.]*(Error|MemoryRanOut|Fault)\b)")


@dataclass(frozen=True)
class Probe:
    """peak_bytes: of the rank with the highest peak. step_s: of the second of two steps. step: of the run, whose batch
    was used. num_tokens: of that step, over all ranks."""

    peak_bytes: int
    step_s: float
    step: int
    num_tokens: int


def run_probe(plan: Plan, limit_s: float = LIMIT_S) -> Probe:
    """Run the probe with all processes of the plan on this machine. Raises InputError if the plan needs other machines
    or memory runs out, RunFault if it fails or exceeds the limit."""
    if plan.compute.nodes > 1:
        raise InputError(
            f"the probe runs on this machine, but the plan has {plural(plan.compute.nodes, 'node')}",
            where="--probe",
            remedy="probe with --set resources.nodes=1 --set resources.workers=N",
        )
    with tempfile.TemporaryDirectory(prefix="tunesmith-probe-") as folder:
        run = RunDir(Path(folder) / "run")
        run.create()
        plan.write(run.plan)
        logs = _run_ranks(run, plan, limit_s)
        if not run.probe.is_file():
            raise _failure(logs, plan)
        value = parse_line(run.probe.read_text(encoding="utf-8")) or {}
        return Probe(**value)


def probe_lines(plan: Plan, probe: Probe) -> list[str]:
    """The measurements next to the estimates, and what to do if memory is short."""
    compute = plan.compute
    lines = [
        f"probe: step {count(probe.step)}, with the largest micro-batch and {plural(probe.num_tokens, 'token')} in all",
        f"  peak memory  {size(probe.peak_bytes)} per process; estimated {size(compute.estimated_peak_bytes)}, "
        f"{size(compute.memory_bytes)} available",
        f"  step time    {duration(probe.step_s)}"
        + (f"; estimated {duration(compute.estimated_step_s)}" if compute.estimated_step_s else ""),
        f"  all steps    at most {duration(probe.step_s * plan.batch.total_steps)}",
    ]
    if probe.peak_bytes > 0.95 * compute.memory_bytes:
        smaller = max(1, plan.batch.micro_batch_size // 2)
        lines.append(
            f"  memory is short: set optimization.micro_batch_size to {smaller}"
            + (" and optimization.gradient_checkpointing: true" if not compute.gradient_checkpointing else "")
        )
    return lines


def _run_ranks(run: RunDir, plan: Plan, limit_s: float) -> list[Path]:
    logs, processes = [run.logs / f"probe-{rank}.log" for rank in range(plan.compute.world_size)], []
    run.logs.mkdir(exist_ok=True)
    try:
        processes += started_ranks(plan, [PROBE, str(run.root)], logs)
        ends = time.monotonic() + limit_s
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() not in (None, 0) for process in processes)
            if failed or time.monotonic() > ends:
                break
            time.sleep(POLL_S)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return logs


def _failure(logs: list[Path], plan: Plan) -> InputError | RunFault:
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in logs)
    lines = [line for line in text.splitlines() if _ERROR.match(line)] or text.strip().splitlines()
    last = lines[-1] if lines else "it was killed, possibly for lack of memory"
    if any(word in text for word in ("out of memory", "MemoryRanOut", "MemoryError")) or not text.strip():
        smaller = max(1, plan.batch.micro_batch_size // 2)
        return InputError(
            f"the probe ran out of memory: {last}",
            where=f"micro_batch_size {plan.batch.micro_batch_size}",
            remedy=f"set optimization.micro_batch_size to {smaller}, or optimization.gradient_checkpointing: true",
        )
    return RunFault(f"the probe failed: {last}", where="--probe", remedy="the run would fail in the same way")

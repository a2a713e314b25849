"""Cost of the model proof: in the plan, and before the first step of the run.

    python benchmarks/model_proof.py [--runs 5] [--model models/smollm2-135m]

Plan: a new process loads torch and the model, and compares (`python -m tunesmith.modeling.proof`), as `tunesmith plan`
does for a model that it has not seen. Worker: the comparisons on a loaded model with LoRA adapters, without loading it.
One thread; wall seconds, and CPU seconds of the process. The share of an hour is that of the wall seconds of both.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine

ROOT = Path(__file__).resolve().parent.parent
HOUR_S = 3600.0
WORKER = """
import sys, time, torch
from pathlib import Path
from tunesmith.configs.sections.method import Lora
from tunesmith.modeling.adapters.method import apply_method
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.forward_path import PACKED_AND_FUSED
from tunesmith.modeling.proof.loaded import prove_loaded
from tunesmith.modeling.proof.method import compare_effects
loss = CausalLoss(apply_method(load_model(Path(sys.argv[1]), dtype=torch.float32), Lora(kind="lora")))
started, cpu = time.monotonic(), time.process_time()
path, _ = prove_loaded(loss, path=PACKED_AND_FUSED)
assert path == PACKED_AND_FUSED
assert compare_effects(loss).comparison.holds
print(time.monotonic() - started, time.process_time() - cpu)
"""


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}


def in_plan(model: Path) -> tuple[float, float]:
    """Return wall and CPU seconds of one proof."""
    before, started = _children_cpu_s(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "tunesmith.modeling.proof", str(model)]
        child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment())
    findings = json.loads(child.stdout.strip().splitlines()[-1])
    if findings.get("loss") is None:
        raise SystemExit(f"the proof failed: {findings}")
    return time.monotonic() - started, _children_cpu_s() - before


def in_worker(model: Path) -> tuple[float, float]:
    """Return wall and CPU seconds of the comparisons on a loaded model."""
    command = [sys.executable, "-P", "-c", WORKER, str(model)]
    child = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    wall_s, cpu_s = map(float, child.stdout.split()[-2:])
    return wall_s, cpu_s


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    plans, workers = zip(*((in_plan(model), in_worker(model)) for _ in range(arguments.runs)), strict=True)
    results = {
        "command": ["python", "benchmarks/model_proof.py", *sys.argv[1:]],
        "plan_s": machine.spread([wall for wall, _ in plans]),
        "plan_cpu_s": machine.spread([cpu for _, cpu in plans]),
        "worker_s": machine.spread([wall for wall, _ in workers]),
        "worker_cpu_s": machine.spread([cpu for _, cpu in workers]),
        "of_an_hour": machine.spread([(p[0] + w[0]) / HOUR_S for p, w in zip(plans, workers, strict=True)]),
    }
    table = [["quantity", "median", "low", "high"]]
    for name in ("plan_s", "plan_cpu_s", "worker_s", "worker_cpu_s", "of_an_hour"):
        table.append([name, *(f"{results[name][key]:.4g}" for key in ("median", "low", "high"))])
    machine.write("model-proof", results, table, arguments.results)


if __name__ == "__main__":
    main()

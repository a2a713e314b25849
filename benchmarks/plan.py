"""Memory and time that the plan predicts, compared with those of real runs on this CPU.

    python benchmarks/plan.py [--only NAME ...] [--add] [--model models/smollm2-135m]

Each case of `CASES` is a run of `tunesmith train` with four steps, one thread per rank. Every 100 ms: the sum of the
proportional set sizes (PSS) of all ranks, without the pages of libraries. Peak private memory of a run is the highest
sum less the same sum of as many interpreters that have imported the worker and multiplied two matrices; predicted is
the plan's peak of all ranks less its constant for the libraries. Step time: CPU seconds of all ranks per step, without
the first. --only: names of cases as in the table. --add: keep the cases of results/plan.json that are not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine  # noqa: E402
import rows  # noqa: E402

from tunesmith.launcher.hardware import measure_products  # noqa: E402
from tunesmith.launcher.planning.memory import PROCESS_BYTES  # noqa: E402

STEPS = 4
EVERY_S = 0.1
INTERPRETER = """
import sys, time, torch, transformers, peft
import tunesmith.training.run_rank
torch.set_num_threads(1)
torch.randn(512, 512) @ torch.randn(512, 512)
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Case:
    """A configuration. size: None for SmolLM2-135M, otherwise (hidden, width, layers) of a model with random weights.
    calibration: whether constants of the time model were fitted on it."""

    method: str
    length: int
    checkpointing: bool
    ranks: int = 1
    zero_stage: int = 0
    precision: str = "fp32"
    size: tuple[int, int, int] | None = None
    calibration: bool = False
    micro_batch: int = 1

    @property
    def name(self) -> str:
        sharding = f"zero-{self.zero_stage} x{self.ranks}" if self.zero_stage else f"ddp x{self.ranks}"
        parts = [self.method, sharding if self.ranks > 1 else "plain", str(self.length), self.precision]
        parts += ["checkpointing"] if self.checkpointing else []
        parts += [f"{self.micro_batch} rows"] if self.micro_batch > 1 else []
        parts += ["x".join(map(str, self.size))] if self.size else []
        return " ".join(parts)


WIDE = (1024, 4096, 10)
"""About 220M weights with the vocabulary of SmolLM2."""
CASES = [
    Case("lora", 512, False, calibration=True),
    Case("lora", 2048, False),
    Case("lora", 2048, True),
    Case("lora", 512, False, micro_batch=2),
    Case("full", 512, False, calibration=True),
    Case("full", 2048, False),
    Case("full", 2048, True),
    Case("qlora", 512, False, calibration=True),
    Case("qlora", 2048, True),
    Case("lora", 512, False, ranks=2),
    Case("full", 512, False, ranks=2),
    Case("full", 512, False, ranks=2, zero_stage=1),
    Case("full", 512, False, ranks=2, zero_stage=2, calibration=True),
    Case("full", 2048, True, ranks=2, zero_stage=2),
    Case("full", 512, False, ranks=2, zero_stage=3, calibration=True),
    Case("full", 2048, True, ranks=2, zero_stage=3),
    Case("lora", 512, False, ranks=2, zero_stage=3),
    Case("lora", 512, False, size=WIDE),
    Case("full", 512, True, size=WIDE),
    Case("full", 512, False, ranks=2, zero_stage=2, size=WIDE),
]


def recipe_of(case: Case, work: Path, model: Path) -> Path:
    rows.write_many_rows(work / "rows.jsonl", 400, (6, 12))
    recipe: dict[str, Any] = {
        "name": "planned",
        "model": {"base": str(model)},
        "task": "chat",
        "method": {"kind": case.method},
        "data": {
            "train": [str(work / "rows.jsonl")],
            "validation": 0.0,
            "max_seq_len": case.length,
            "too_long": "truncate",
        },
        "optimization": {
            "global_batch_size": case.ranks * case.micro_batch,
            "micro_batch_size": case.micro_batch,
            "max_steps": STEPS,
            "gradient_checkpointing": case.checkpointing,
        },
        "resources": {"workers": case.ranks},
        "parallelism": {"zero_stage": case.zero_stage},
        "evaluation": {"num_answers": 0},
        "precision": case.precision,
    }
    path = work / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def model_of(case: Case, base: Path, work: Path) -> Path:
    """SmolLM2, or a Llama with random weights and its tokenizer."""
    if case.size is None:
        return base
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    hidden, width, layers = case.size
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = hidden, width, layers
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = hidden // 64, hidden // 128, 64
    AutoModelForCausalLM.from_config(config).save_pretrained(work / "model")
    AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(work / "model")
    return work / "model"


class Watch:
    """Samples the memory and CPU time of all ranks below a process."""

    def __init__(self, pid: int):
        self.pid = pid
        self.samples: list[tuple[float, int, float]] = []
        """Time of day, sum of PSS in bytes, sum of CPU seconds."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._running = True
        self._thread.start()

    def close(self) -> None:
        self._running = False
        self._thread.join()

    def _run(self) -> None:
        while self._running:
            ranks = [pid for pid in descendants(self.pid) if is_rank(pid)]
            if ranks:
                self.samples.append((time.time(), memory_of(ranks), sum(map(cpu_s, ranks))))
            time.sleep(EVERY_S)


def descendants(pid: int) -> list[int]:
    processes, waiting = [], [pid]
    while waiting:
        try:
            tasks = list(Path(f"/proc/{waiting.pop()}/task").iterdir())
        except OSError:
            continue
        for task in tasks:
            try:
                children = [int(child) for child in (task / "children").read_text().split()]
            except OSError:
                continue
            processes += children
            waiting += children
    return processes


def is_rank(pid: int) -> bool:
    try:
        return b"tunesmith.training.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def memory_of(pids: list[int]) -> int:
    """Sum of the proportional set sizes of processes in bytes: anonymous and shared memory, and weights that are mapped
    from files. Not the pages of libraries, which depend on what else runs on the machine."""
    return sum(_memory_of(pid) for pid in pids)


def _memory_of(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps").read_text()
    except OSError:
        return 0
    total, key = 0, "Pss"
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if " " in name:  # addresses, permissions, offset, device, inode and path of a mapping
            path = "".join(line.split(None, 5)[5:])
            is_library = path.startswith("/") and not path.startswith("/dev/shm") and ".safetensors" not in path
            key = "Anonymous" if is_library else "Pss"  # of libraries only the pages that were written
        elif name == key:
            total += int(value.split()[0]) * 1024
    return total


def cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}


def interpreter_bytes(count: int) -> int:
    """Sum of the PSS of `count` interpreters that have imported the worker."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", INTERPRETER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT,
        )
        for _ in range(count)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    total = memory_of([process.pid for process in processes])
    for process in processes:
        process.communicate("")
    return total


def measure(case: Case, base: Path, interpreters: dict[int, int]) -> dict[str, Any]:
    """Run a case. Returns predicted and measured bytes and CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        recipe = recipe_of(case, work, model_of(case, base, work))
        command = [sys.executable, "-m", "tunesmith.cli.main", "train", str(recipe), "--run-dir", str(work / "run")]
        with open(work / "log", "wb") as log:
            process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, cwd=ROOT)
            watch = Watch(process.pid)
            code = process.wait()
            watch.close()
        if code:
            raise RuntimeError((work / "log").read_text(errors="replace")[-3000:])
        plan = json.loads((work / "run" / "plan.json").read_text())
        events = [json.loads(line) for line in (work / "run" / "events.jsonl").read_text().splitlines()]
    return compared(case, plan, events, watch.samples, interpreters[case.ranks])


def compared(
    case: Case, plan: dict[str, Any], events: list[dict[str, Any]], samples: list[tuple[float, int, float]], base: int
) -> dict[str, Any]:
    """Return the measured and predicted numbers of a case. base: memory of the interpreters."""
    steps = [event for event in events if event["kind"] == "step"]
    first, last = steps[0]["time"], steps[-1]["time"]
    limits = {"loading": (0.0, first - steps[0]["step_s"]), "steps": (first - steps[0]["step_s"], last)}
    limits["end"] = (last, float("inf"))
    peaks = {
        phase: max((memory for at, memory, _ in samples if low <= at < high), default=base) - base
        for phase, (low, high) in limits.items()
    }

    def cpu_at(when: float) -> float:
        return max((cpu for at, _, cpu in samples if at <= when), default=0.0)

    compute = plan["compute"]
    seconds = compute["estimated_step_s"]
    return {
        "phases": peaks,
        "memory": max(peaks.values()),
        "predicted_memory": case.ranks * (compute["estimated_peak_bytes"] - PROCESS_BYTES),
        "step_cpu_s": (cpu_at(last) - cpu_at(first)) / (len(steps) - 1),
        "predicted_step_cpu_s": case.ranks * seconds if seconds else None,
        "calibration": case.calibration,
    }


def table_of(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row per case: measured, predicted and the error of the prediction."""
    rows = [["case", "peak memory", "predicted", "error", "in", "CPU s per step", "predicted", "error"]]
    for name, of in results.items():
        memory = f"{of['predicted_memory'] / of['memory'] - 1:+.0%}"
        seconds = of["predicted_step_cpu_s"]
        time_error = f"{seconds / of['step_cpu_s'] - 1:+.0%}" if seconds else "unknown"
        phase = max(of["phases"], key=of["phases"].get)
        rows.append(
            [
                *(name + (" (calibration)" if of["calibration"] else ""), f"{of['memory'] / 1e9:.2f} GB"),
                *(f"{of['predicted_memory'] / 1e9:.2f} GB", memory, phase),
                *(f"{of['step_cpu_s']:.1f}", f"{seconds:.1f}" if seconds else "", time_error),
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES], default=[])
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    arguments = parser.parse_args()
    earlier = arguments.results / "plan.json"
    results = json.loads(earlier.read_text(encoding="utf-8"))["cases"] if arguments.add and earlier.is_file() else {}
    measure_products()
    interpreters = {count: interpreter_bytes(count) for count in (1, 2)}
    for case in CASES:
        if not arguments.only or case.name in arguments.only:
            print(f"{case.name} ...", flush=True)
            results[case.name] = measure(case, arguments.model.resolve(), interpreters)
            ordered = {each.name: results[each.name] for each in CASES if each.name in results}
            content = {"command": ["python", "benchmarks/plan.py"], "cases": ordered}
            machine.write("plan", content, table_of(ordered), arguments.results)


if __name__ == "__main__":
    main()

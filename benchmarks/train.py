"""Training throughput and memory of Tunesmith and alternatives with the same rows, model, method and batch.

    python benchmarks/train.py [--method lora|full] [--precision fp32|bf16] [--steps 6] [--rounds 3] [--add]
                               [--only tunesmith bare] [--profile]

The systems alternate, `rounds` times, each run in a fresh process: LoRA of rank 16 on all linear layers, or full
fine-tuning; fp32 or bf16, rows of at most 512 tokens, about 2,000 tokens per step, one thread. With bf16 one of the
systems is Tunesmith in fp32, and results are stored by kind of CPU (`train-bf16-amx`). Measured: non-padding tokens per
CPU second (all steps except the first), peak memory, CPU seconds from process start to the end of the first step, mean
loss of the last three steps. A system that is not installed is skipped, with the reason. Ratios are Tunesmith divided
by the other system in the same round, median with minimum and maximum. --add: add rounds to results/NAME.json.
--profile: run Tunesmith once more under torch's profiler.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine  # noqa: E402
import rows  # noqa: E402
from entrants import ENTRANTS, IN_FP32, LORA, MAX_SEQ_LEN, RATE, SEQUENCES, Watch  # noqa: E402

Runs = dict[str, dict[str, float]]
"""One round: system -> measured values."""


def make_plan(work: Path, model: Path, steps: int, method: str, precision: str) -> None:
    """Prepare the rows and write the plan, in a separate process like `tunesmith train`."""
    recipe = {
        "name": "benchmark",
        "model": {"base": str(model)},
        "task": "chat",
        "method": {"kind": "full"} if method == "full" else LORA,
        "data": {"train": [str(work / "rows.jsonl")], "max_seq_len": MAX_SEQ_LEN, "too_long": "drop"},
        "optimization": {"global_batch_size": SEQUENCES, "learning_rate": RATE, "schedule": "constant"}
        | {"warmup_fraction": 0.0, "max_steps": steps},
        "evaluation": {"num_answers": 0},
        "precision": precision,
    }
    (work / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "tunesmith.cli.main", "plan", str(work / "recipe.yaml"), "--json"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    (work / "plan.json").write_text(planned.stdout, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--only", nargs="*", choices=list(ENTRANTS), default=list(ENTRANTS))
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument(
        "--llamafactory", metavar="PYTHON", help="interpreter of an environment with LLaMA-Factory; default: this one"
    )
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m")
    parser.add_argument("--name", help="name of the result files; default: train or train-full, or train-bf16-CPU")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--inside", nargs=2, metavar=("ENTRANT", "WORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        name, work = arguments.inside
        watch = Watch(arguments.steps if arguments.profile else 0)
        ENTRANTS[name][0](Path(work), arguments.model.resolve(), arguments.steps, watch)
        result = {"profile": watch.profile()} if arguments.profile else watch.result()
        (Path(work) / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return
    name = arguments.name or result_name(arguments.method, arguments.precision)
    if arguments.precision == "fp32":
        arguments.only = [who for who in arguments.only if who not in IN_FP32]
    rounds, skipped, profile = earlier(arguments.results / f"{name}.json") if arguments.add else ([], {}, [])
    for who in arguments.only:
        skipped.pop(who, None)
        lacking = [package for package in ENTRANTS[who][1] if importlib.util.find_spec(package) is None]
        if lacking and not (who == "llamafactory" and arguments.llamafactory):
            skipped[who] = f"not installed: {', '.join(lacking)}"
    for _ in range(arguments.rounds):
        rounds.append({})
        for who in arguments.only:
            if who not in skipped:
                python = arguments.llamafactory if who == "llamafactory" else None
                precision = "fp32" if who in IN_FP32 else arguments.precision
                outcome = measure(who, arguments.model.resolve(), arguments.steps, arguments.method, precision, python)
                if isinstance(outcome, str):
                    skipped[who] = outcome
                else:
                    rounds[-1][who] = outcome
    if arguments.profile:
        options = (arguments.steps, arguments.method, arguments.precision, None, "--profile")
        outcome = measure("tunesmith", arguments.model.resolve(), *options)
        profile = [] if isinstance(outcome, str) else outcome["profile"]
    rounds = [round_ for round_ in rounds if round_]
    skipped = {
        who: why for who, why in skipped.items() if not any(who in round_ for round_ in rounds)
    }  # not if measured in an earlier call
    report(name, arguments.results, rounds, skipped, arguments.steps, profile)


def earlier(path: Path) -> tuple[list[Runs], dict[str, str], list[dict[str, Any]]]:
    """Return the earlier rounds, the skipped systems with reasons, and the profile."""
    if not path.is_file():
        return [], {}, []
    results = json.loads(path.read_text(encoding="utf-8"))
    return results["rounds"], results["skipped"], results.get("profile", [])


def result_name(method: str, precision: str) -> str:
    """Return the name of the result files; with bf16 it includes the kind of CPU."""
    name = "train" if method == "lora" else "train-full"
    return name if precision == "fp32" else f"{name}-bf16-{machine.cpu_kind()}"


def measure(
    name: str, model: Path, steps: int, method: str, precision: str, python: str | None, *more: str
) -> dict[str, Any] | str:
    """Run one system in a fresh process; return its result, or the last line of the error output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows.write_rows(work / "rows.jsonl", 20 * steps + 40)
        make_plan(work, model, steps, method, precision)
        inside = ["--inside", name, folder, "--steps", str(steps), "--model", str(model), *more]
        print(f"{name} ...", flush=True)
        command = [python or sys.executable, str(Path(__file__).resolve()), *inside]
        completed = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        if completed.returncode:
            return f"failed: {(completed.stderr.strip().splitlines() or ['no error output'])[-1][:200]}"
        return json.loads((work / "result.json").read_text(encoding="utf-8"))


def report(
    name: str,
    directory: Path,
    rounds: list[Runs],
    skipped: dict[str, str],
    steps: int,
    profile: list[dict[str, Any]],
) -> None:
    keys = ("tokens_per_cpu_s", "peak_bytes", "first_step_cpu_s", "final_loss")
    runs = {who: [round_[who] for round_ in rounds if who in round_] for who in ENTRANTS}
    summary = {who: {key: machine.spread([run[key] for run in of]) for key in keys} for who, of in runs.items() if of}
    ratios = {who: ratios_of(rounds, who) for who in summary if who != "tunesmith"}
    ratios = {who: of for who, of in ratios.items() if of}
    table = [
        ["system", "tokens / CPU second", "peak memory", "CPU s to first step", "final loss", "Tunesmith, relative"]
    ]
    for who, of in summary.items():
        rate = of["tokens_per_cpu_s"]
        cells = [f"{rate['median']:.1f} ({rate['low']:.1f} to {rate['high']:.1f})"]
        cells += [f"{of['peak_bytes']['median'] / 1e9:.2f} GB", f"{of['first_step_cpu_s']['median']:.1f}"]
        faster = ""
        if who in ratios:
            speed, memory = ratios[who]["speed"], ratios[who]["memory"]
            faster = f"{speed['median']:.2f} x speed ({speed['low']:.2f} to {speed['high']:.2f}), "
            faster += f"{memory['median']:.2f} x memory"
        table.append([who, *cells, f"{of['final_loss']['median']:.4f}", faster])
    table += [[who, "skipped", why, "", "", ""] for who, why in skipped.items()]
    # The path of the other environment is not recorded.
    options = ["PYTHON" if before == "--llamafactory" else one for before, one in pairwise(["", *sys.argv[1:]])]
    results = {
        "command": ["python", "benchmarks/train.py", *options],
        "steps": steps,
        "entrants": summary,
        "ratios": ratios,
        "skipped": skipped,
        "rounds": rounds,
        **({"profile": profile} if profile else {}),
    }
    machine.write(name, results, table, directory)


def ratios_of(rounds: list[Runs], who: str) -> dict[str, dict[str, float]]:
    """Return Tunesmith's speed and memory divided by the other system's, over the rounds with both."""
    pairs = [(round_["tunesmith"], round_[who]) for round_ in rounds if who in round_ and "tunesmith" in round_]
    if not pairs:
        return {}
    return {
        "speed": machine.spread([ours["tokens_per_cpu_s"] / other["tokens_per_cpu_s"] for ours, other in pairs]),
        "memory": machine.spread([ours["peak_bytes"] / other["peak_bytes"] for ours, other in pairs]),
    }


if __name__ == "__main__":
    main()

"""The same rows, model, method and batch through Tunesmith and through what users would pick instead.

    python benchmarks/train.py [--method lora|full] [--steps 6] [--rounds 3] [--add] [--only tunesmith bare] [--profile]

Every entrant runs in a fresh process, in turn, `rounds` times: LoRA of rank 16 on all linear layers, or all weights;
fp32, rows of at most 512 tokens, about 2,000 tokens a step, one thread. Measured: non-padding tokens a CPU second (all
steps but the first), peak memory, CPU seconds from the start of the process to the end of the first step, mean loss of
the last three steps. An entrant that is not installed is left out, with the reason. Ratios are of Tunesmith and the
other in the same round, median with lowest and highest. --add: to what results/NAME.json holds already, so that the
rounds may be spread over several calls. --profile: one more run of Tunesmith, under torch's profiler, for where the
time goes.
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
from entrants import ENTRANTS, LORA, MAX_SEQ_LEN, RATE, SEQUENCES, Watch  # noqa: E402

Runs = dict[str, dict[str, float]]
"""One round: what was measured of each entrant."""


def make_plan(work: Path, model: Path, steps: int, method: str) -> None:
    """Rows to tokens, and the plan: in a process of its own, as `tunesmith train` has it."""
    recipe = {
        "name": "benchmark",
        "model": {"base": str(model)},
        "task": "chat",
        "method": {"kind": "full"} if method == "full" else LORA,
        "data": {"train": [str(work / "rows.jsonl")], "max_seq_len": MAX_SEQ_LEN, "too_long": "drop"},
        "optimization": {"global_batch_size": SEQUENCES, "learning_rate": RATE, "schedule": "constant"}
        | {"warmup_fraction": 0.0, "max_steps": steps},
        "evaluation": {"num_answers": 0},
        "precision": "fp32",
    }
    (work / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "tunesmith.cli.main", "plan", str(work / "recipe.yaml"), "--json"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    (work / "plan.json").write_text(made.stdout, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--only", nargs="*", choices=list(ENTRANTS), default=list(ENTRANTS))
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--llamafactory", metavar="PYTHON", help="of an environment that has it; default: this one")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m")
    parser.add_argument("--name", help="of the files in benchmarks/results/; default: train, or train-full")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--inside", nargs=2, metavar=("ENTRANT", "WORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        name, work = arguments.inside
        watch = Watch(arguments.steps if arguments.profile else 0)
        ENTRANTS[name][0](Path(work), arguments.model.resolve(), arguments.steps, watch)
        found = {"profile": watch.profile()} if arguments.profile else watch.result()
        (Path(work) / "result.json").write_text(json.dumps(found), encoding="utf-8")
        return
    name = arguments.name or ("train" if arguments.method == "lora" else "train-full")
    rounds, skipped, most = earlier(arguments.results / f"{name}.json") if arguments.add else ([], {}, [])
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
                outcome = measure(who, arguments.model.resolve(), arguments.steps, arguments.method, python)
                if isinstance(outcome, str):
                    skipped[who] = outcome
                else:
                    rounds[-1][who] = outcome
    if arguments.profile:
        outcome = measure("tunesmith", arguments.model.resolve(), arguments.steps, arguments.method, None, "--profile")
        most = [] if isinstance(outcome, str) else outcome["profile"]
    rounds = [one for one in rounds if one]
    skipped = {who: why for who, why in skipped.items() if not any(who in one for one in rounds)}  # in an earlier call
    report(name, arguments.results, rounds, skipped, arguments.steps, most)


def earlier(path: Path) -> tuple[list[Runs], dict[str, str], list[dict[str, Any]]]:
    """The rounds that were measured before, who was left out, and the profile."""
    if not path.is_file():
        return [], {}, []
    told = json.loads(path.read_text(encoding="utf-8"))
    return told["rounds"], told["skipped"], told.get("profile", [])


def measure(name: str, model: Path, steps: int, method: str, python: str | None, *more: str) -> dict[str, Any] | str:
    """One run in a fresh process; the last line of its error where it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows.write_rows(work / "rows.jsonl", 20 * steps + 40)
        make_plan(work, model, steps, method)
        inside = ["--inside", name, folder, "--steps", str(steps), "--model", str(model), *more]
        print(f"{name} ...", flush=True)
        command = [python or sys.executable, str(Path(__file__).resolve()), *inside]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        if ended.returncode:
            return f"it failed: {(ended.stderr.strip().splitlines() or ['without a word'])[-1][:200]}"
        return json.loads((work / "result.json").read_text(encoding="utf-8"))


def report(
    name: str,
    directory: Path,
    rounds: list[Runs],
    skipped: dict[str, str],
    steps: int,
    most: list[dict[str, Any]],
) -> None:
    keys = ("tokens_per_cpu_s", "peak_bytes", "first_step_cpu_s", "final_loss")
    runs = {who: [one[who] for one in rounds if who in one] for who in ENTRANTS}
    summary = {who: {key: machine.spread([run[key] for run in of]) for key in keys} for who, of in runs.items() if of}
    ratios = {who: ratios_of(rounds, who) for who in summary if who != "tunesmith"}
    ratios = {who: of for who, of in ratios.items() if of}
    table = [["", "tokens / CPU second", "peak memory", "CPU s to first step", "final loss", "Tunesmith's ratio"]]
    for who, of in summary.items():
        rate = of["tokens_per_cpu_s"]
        cells = [f"{rate['median']:.1f} ({rate['low']:.1f} to {rate['high']:.1f})"]
        cells += [f"{of['peak_bytes']['median'] / 1e9:.2f} GB", f"{of['first_step_cpu_s']['median']:.1f}"]
        faster = ""
        if who in ratios:
            speed, memory = ratios[who]["speed"], ratios[who]["memory"]
            faster = f"{speed['median']:.2f} x the speed ({speed['low']:.2f} to {speed['high']:.2f}), "
            faster += f"{memory['median']:.2f} of the memory"
        table.append([who, *cells, f"{of['final_loss']['median']:.4f}", faster])
    table += [[who, "skipped", why, "", "", ""] for who, why in skipped.items()]
    # Where the other environment lies is nobody else's matter.
    told = ["PYTHON" if before == "--llamafactory" else one for before, one in pairwise(["", *sys.argv[1:]])]
    results = {
        "command": ["python", "benchmarks/train.py", *told],
        "steps": steps,
        "entrants": summary,
        "ratios": ratios,
        "skipped": skipped,
        "rounds": rounds,
        **({"profile": most} if most else {}),
    }
    machine.write(name, results, table, directory)


def ratios_of(rounds: list[Runs], who: str) -> dict[str, dict[str, float]]:
    """Tunesmith's speed and memory over the other's, of the rounds that have both."""
    pairs = [(one["tunesmith"], one[who]) for one in rounds if who in one and "tunesmith" in one]
    if not pairs:
        return {}
    return {
        "speed": machine.spread([ours["tokens_per_cpu_s"] / other["tokens_per_cpu_s"] for ours, other in pairs]),
        "memory": machine.spread([ours["peak_bytes"] / other["peak_bytes"] for ours, other in pairs]),
    }


if __name__ == "__main__":
    main()

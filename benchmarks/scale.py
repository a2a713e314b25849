"""Scaling of cost with rows, tokens, ranks and parameters.

    python benchmarks/scale.py [--rows 5000 20000 80000] [--repeats 3]

rows: the data preparation of `tunesmith train`, on one core, each size in a fresh process: CPU seconds per row, and
peak memory above that of the process with its tokenizer. tokens: the same for rows of one and of eight paragraphs: CPU
seconds per token. ranks: time of one rank to load a step's batch of 8 samples per rank, for 1 to 4,096 ranks.
parameters: writing and verifying a checkpoint, seconds per trained parameter. Growth is the cost per unit of the
largest size divided by that of the smallest: 1 is linear (for memory: constant).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import rows

ROOT = Path(__file__).resolve().parent.parent


def prepare_once(file: Path, model: Path) -> dict[str, float]:
    """Measure the preparation of a file, in a separate process."""
    from tunesmith.data.index.prepare import prepare
    from tunesmith.data.tokenization.tokenizer import Tokenizer

    tokenizer, recipe = Tokenizer.load(model), rows.recipe_of(file, model)
    with tempfile.TemporaryDirectory() as cache:
        machine.reset_peak()
        before, started = machine.peak_bytes(), time.process_time()
        facts = prepare(recipe, tokenizer, recipe_dir=Path.cwd(), cache=Path(cache), workers=1)
        cpu_s = time.process_time() - started
        return {"cpu_s": cpu_s, "bytes": machine.peak_bytes() - before, "tokens": facts.train.num_tokens}


def measure_rows(
    folder: Path, model: Path, count: int, repeats: int, paragraphs: tuple[int, int] = (1, 6)
) -> dict[str, float | dict[str, float]]:
    file = folder / "rows.jsonl"
    rows.write_many_rows(file, count, paragraphs)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    runs = []
    for _ in range(repeats):
        command = [sys.executable, str(Path(__file__).resolve()), "--model", str(model), "--inside", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        if result.returncode:
            raise SystemExit(result.stderr)
        runs.append(json.loads(result.stdout.splitlines()[-1]))
    return {
        "rows": count,
        "tokens": runs[0]["tokens"],
        "cpu_us_a_row": machine.spread([1e6 * run["cpu_s"] / count for run in runs]),
        "cpu_us_a_token": machine.spread([1e6 * run["cpu_s"] / run["tokens"] for run in runs]),
        "peak_bytes": machine.spread([run["bytes"] for run in runs]),
    }


def measure_ranks(folder: Path, ranks: list[int]) -> list[dict[str, Any]]:
    """Measure the batch of one rank over an index of many short documents (64 tokens)."""
    import numpy as np

    from tunesmith.data.index.loader import Loader
    from tunesmith.data.index.token_index import IndexWriter, TokenIndex

    count, size = 8 * max(ranks), 64
    writer = IndexWriter(folder / "index")
    lengths, tokens = np.full(count, size), np.zeros(count * size, np.uint32)
    writer.add(tokens, np.ones(count * size, np.uint8), lengths, np.arange(count))
    writer.finish(None, max_seq_len=size, fingerprint="ranks")
    index, results = TokenIndex.open(folder / "index"), []
    for world_size in ranks:
        loader = Loader(
            index, seed=0, epochs=100, global_batch_size=8 * world_size, micro_batch_size=8, rank=world_size - 1,
            world_size=world_size,
        )  # fmt: skip
        took = []
        for step in np.linspace(1, loader.total_steps, 21).astype(int).tolist():
            started = time.process_time()
            loader.step_batch(step)
            took.append(1000 * (time.process_time() - started))
        results.append({"ranks": world_size, "cpu_ms_a_step": machine.spread(took)})
    return results


def measure_parameters(folder: Path, sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    import checkpoint

    from tunesmith.rundir.commit import verify
    from tunesmith.rundir.paths import RunDir
    from tunesmith.training.checkpoint.checkpoints import save_checkpoint
    from tunesmith.training.checkpoint.state import RunState

    results = []
    for size in sizes:
        engine = checkpoint.make_engine(size)
        count = sum(weight.numel() for weight in engine.parameters.values())
        run = RunDir(folder / f"run-{size}")
        run.create()
        took = []
        for step in range(1, repeats + 1):
            started = time.process_time()
            path = save_checkpoint(run, RunState(step=step, num_updates=step), engine, attempt=1, fingerprints={})
            assert verify(path) is None
            took.append(1e9 * (time.process_time() - started) / count)
            machine.remove(path)
        results.append({"parameters": count, "cpu_ns_a_parameter": machine.spread(took)})
    return results


def growth(results: list[dict[str, Any]], key: str) -> float:
    return results[-1][key]["median"] / results[0][key]["median"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5000, 20000, 80000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 512, 4096])
    parser.add_argument("--parameters", type=int, nargs="+", default=[2_000_000, 8_000_000, 32_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if arguments.inside:
        print(json.dumps(prepare_once(arguments.inside, arguments.model)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), arguments.model.resolve()
        by_rows = [measure_rows(folder, model, count, arguments.repeats) for count in arguments.rows]
        long = arguments.rows[0]
        by_tokens = [measure_rows(folder, model, long, arguments.repeats, (n, n)) for n in (1, 8)]
        by_ranks = measure_ranks(folder, arguments.ranks)
        by_parameters = measure_parameters(folder, arguments.parameters, arguments.repeats)
    largest, smaller = by_rows[-1], by_rows[-2] if len(by_rows) > 1 else by_rows[-1]
    further = max(1, largest["rows"] - smaller["rows"])  # type: ignore[operator]
    results: dict[str, Any] = {
        "command": ["python", "benchmarks/scale.py", *sys.argv[1:]],
        "rows": by_rows,
        "tokens": by_tokens,
        "ranks": by_ranks,
        "parameters": by_parameters,
        "bytes_a_further_row": (largest["peak_bytes"]["median"] - smaller["peak_bytes"]["median"]) / further,  # type: ignore[index]
        "growth": {
            "cpu_a_row": growth(by_rows, "cpu_us_a_row"),
            "cpu_a_token": growth(by_tokens, "cpu_us_a_token"),
            "memory": growth(by_rows, "peak_bytes"),
            "cpu_a_step_of_a_rank": growth(by_ranks, "cpu_ms_a_step"),
            "cpu_a_parameter": growth(by_parameters, "cpu_ns_a_parameter"),
        },
    }
    machine.write("scale", results, table_of(results), arguments.results)


def table_of(results: dict[str, Any]) -> list[list[str]]:
    table = [["quantity", "smallest", "largest", "growth"]]
    shown = [
        ("rows", "cpu_us_a_row", "CPU µs per row", "rows", "cpu_a_row"),
        ("rows", "peak_bytes", "peak bytes", "rows", "memory"),
        ("tokens", "cpu_us_a_token", "CPU µs per token", "tokens", "cpu_a_token"),
        ("ranks", "cpu_ms_a_step", "CPU ms per rank and step", "ranks", "cpu_a_step_of_a_rank"),
        ("parameters", "cpu_ns_a_parameter", "CPU ns per parameter, save and verify", "parameters", "cpu_a_parameter"),
    ]
    for part, key, what, unit, grown in shown:
        ends = [f"{one[key]['median']:,.2f} at {one[unit]:,} {unit}" for one in (results[part][0], results[part][-1])]
        table.append([what, *ends, f"{results['growth'][grown]:.2f}"])
    table.append(["bytes per additional row", "", f"{results['bytes_a_further_row']:.0f}", ""])
    return table


if __name__ == "__main__":
    main()

"""Cost of preparing rows, compared with the tokenizer alone.

    python benchmarks/data.py [--rows 8000] [--pairs 7] [--model models/smollm2-135m]

Alternately, `pairs` times: the tokenizer's `encode_batch` over the rendered texts, in batches of 1,000, on one core;
and the complete data preparation of `tunesmith train` for the same rows, on one core: reading, hashing, checks,
template, tokens, loss masks, packing, receipts, near-duplicates, writing the index. Each time with an empty cache and a
fresh tokenizer, then again with the prepared cache. CPU seconds of the process; for the second run also wall seconds.
Then the padding of the packed samples, and the time from opening the index to the first batch at positions from the
first to the last step.
"""

import argparse
import cProfile
import json
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import rows

from tunesmith.configs.plan import DataFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.data.index.loader import Loader
from tunesmith.data.index.prepare import prepare
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
BATCH = 1000
EPOCHS = 3


def measure_pair(texts: list[str], recipe: Recipe, model: Path) -> tuple[dict[str, float], DataFacts, Path]:
    """Measure one pair; return also the data facts and the cache directory, which the caller removes."""
    cache = Path(tempfile.mkdtemp(prefix="tunesmith-benchmark-"))
    backend = Tokenizer.load(model).backend
    started = time.process_time()
    for first in range(0, len(texts), BATCH):
        backend.encode_batch(texts[first : first + BATCH], add_special_tokens=False)
    seconds = {"bare_cpu_s": time.process_time() - started}
    tokenizer = Tokenizer.load(model)
    facts = None
    for name in ("prepare", "again"):
        started, clock = time.process_time(), time.perf_counter()
        facts = prepare(recipe, tokenizer, recipe_dir=Path.cwd(), cache=cache, workers=1)
        seconds |= {f"{name}_cpu_s": time.process_time() - started, f"{name}_s": time.perf_counter() - clock}
    assert facts is not None
    return seconds, facts, cache


def profile(recipe: Recipe, model: Path) -> list[dict[str, Any]]:
    """Profile data preparation: functions with the largest own time, measured with cProfile."""
    profiler, tokenizer = cProfile.Profile(), Tokenizer.load(model)
    with tempfile.TemporaryDirectory() as cache:
        profiler.runcall(prepare, recipe, tokenizer, recipe_dir=Path.cwd(), cache=Path(cache), workers=1)
    entries: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    spent: dict[str, float] = {}
    for (file, line, name), entry in entries.items():
        where = f"{Path(file).name}: {name}" if line else name.strip("<>")
        spent[where] = spent.get(where, 0.0) + entry[2]
    return machine.shares(spent, max_entries=8)


def padding(facts: DataFacts, max_seq_len: int) -> float:
    return 1 - facts.train.num_tokens / (facts.train.num_samples * max_seq_len)


def resume_ms(index: Path, repeats: int) -> list[float]:
    """Return milliseconds from opening the index to the batch, at positions spread over the run."""
    total = Loader(TokenIndex.open(index), seed=0, epochs=EPOCHS, global_batch_size=8, micro_batch_size=8).total_steps
    times = []
    for number in range(repeats):
        started = time.perf_counter()
        loader = Loader(TokenIndex.open(index), seed=0, epochs=EPOCHS, global_batch_size=8, micro_batch_size=8)
        loader.step_batch(1 + number * (total - 1) // max(1, repeats - 1))
        times.append(1000 * (time.perf_counter() - started))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    pairs: list[dict[str, float]] = []
    padded, resumed, num_tokens = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        rows.write_many_rows(file, arguments.rows)
        template = Tokenizer.load(arguments.model).template
        assert template is not None
        texts = [template.render(json.loads(line)["messages"]) for line in file.read_text("utf-8").splitlines()]
        recipe = rows.recipe_of(file, arguments.model.resolve())
        for _ in range(arguments.pairs):
            seconds, facts, cache = measure_pair(texts, recipe, arguments.model)
            pairs.append(seconds)
            padded.append(padding(facts, recipe.data.max_seq_len))
            resumed += resume_ms(Path(facts.train.index), 21)
            num_tokens = facts.train.num_tokens
            machine.remove(cache)
        profile_entries = profile(recipe, arguments.model.resolve())
    results: dict[str, Any] = {
        "command": ["python", "benchmarks/data.py", *sys.argv[1:]],
        "rows": arguments.rows,
        "tokens": num_tokens,
        "seconds": {key: machine.spread([pair[key] for pair in pairs]) for key in pairs[0]},
        "rate_of_bare": machine.spread([pair["bare_cpu_s"] / pair["prepare_cpu_s"] for pair in pairs]),
        "second_run": machine.spread([pair["again_s"] / pair["prepare_s"] for pair in pairs]),
        "padding": machine.spread(padded),
        "resume_ms": machine.spread(resumed),
        "profile": profile_entries,
    }
    table = [["quantity", "median", "low", "high"]]
    for key in ("rate_of_bare", "second_run", "padding", "resume_ms"):
        table.append([key, *(f"{results[key][name]:.4f}" for name in ("median", "low", "high"))])
    machine.write("data", results, table, arguments.results)


if __name__ == "__main__":
    main()

"""Checkpoint stall of the training loop, and write throughput.

    python benchmarks/checkpoint.py [--parameters 5000000 30000000] [--repeats 5] [--directory DIR]

For each size: a synchronous save; the stall of a background save (copy, ledger, start of the writer) and its time until
it is committed; and a raw write of the same bytes from memory with one fsync. They alternate, so that other load on the
machine affects all of them equally.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import torch

from tunesmith.configs.sections.optimization import Optimization
from tunesmith.rundir.hashed_file import HashedFile
from tunesmith.rundir.ledger import Ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint.checkpoints import Content, save_checkpoint, tensors_of, write_checkpoint
from tunesmith.training.checkpoint.staging import Background, Staging
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.plain import PlainEngine

LAYER = 576 * 1536
"""Number of weights of one matrix, as in SmolLM2-135M's feed-forward blocks."""


def make_engine(num_parameters: int) -> PlainEngine:
    """Return an engine with fp32 weight matrices and optimizer moments, as after one update."""
    torch.manual_seed(0)
    count = max(1, round(num_parameters / LAYER))
    weights = {f"layer.{number}.weight": torch.nn.Parameter(torch.randn(576, 1536)) for number in range(count)}
    engine = PlainEngine(torch.nn.Identity(), weights, Optimization(), Ranks(0, 0, 1), device="cpu")  # type: ignore[arg-type]
    for weight in weights.values():
        weight.grad = torch.randn_like(weight)
    engine.optim_step(1e-3)
    return engine


def measure(num_parameters: int, repeats: int, directory: Path) -> dict[str, Any]:
    engine, staging, background = make_engine(num_parameters), Staging(), Background()
    run = RunDir(directory / "run")
    run.create()
    ledger = Ledger(run, 0, 1)
    seconds: dict[str, list[float]] = {
        "waited_for": [],
        "stall": [],
        "committed": [],
        "raw": [],
        "step": [],
        "beside": [],
    }
    num_bytes, spent = 0, {}
    for step in range(1, repeats + 2):
        state, ledger_line = RunState(step=step, num_updates=step), ([step], [step], 1, 1, (1, 1))
        measured: dict[str, float] = {}
        ledger.write(step, *ledger_line)
        started = time.perf_counter()
        with clocks(spent if step > 1 else {}):
            ledger.sync()
            path = save_checkpoint(run, state, engine, attempt=1, fingerprints={})
        measured["waited_for"] = time.perf_counter() - started
        num_bytes = sum(file.stat().st_size for file in path.iterdir())
        shutil.rmtree(path)

        measured["step"] = clocked(some_steps)
        ledger.write(step, *ledger_line)
        started = time.perf_counter()
        ledger.sync()
        content = Content.of(state, engine, {})
        staging.fill({**content.shapes, **content.moments}, tensors_of(engine))
        background.start(lambda content=content: write(run, content, staging))
        measured["stall"] = time.perf_counter() - started
        measured["beside"] = clocked(some_steps)
        background.wait()
        measured["committed"] = time.perf_counter() - started
        shutil.rmtree(path)

        measured["raw"] = clocked(lambda: write_raw(directory / "raw", staging))
        if step > 1:  # the first one allocates the buffer and warms the disk caches
            for key, value in measured.items():
                seconds[key].append(value)
        else:
            first_stall = measured["stall"]
    return {
        "parameters": sum(p.numel() for p in engine.parameters.values()),
        "bytes": num_bytes,
        "seconds": {key: machine.spread(values) for key, values in seconds.items()},
        "first_stall_s": first_stall,
        "stall_of_waited_for": ratio(seconds["stall"], seconds["waited_for"]),
        "bytes_per_s_of_raw": ratio(seconds["raw"], seconds["waited_for"]),
        "steps_beside_the_writer": ratio(seconds["beside"], seconds["step"]),
        "profile": machine.shares({**spent, "other": sum(seconds["waited_for"]) - sum(spent.values())}),
    }


@contextmanager
def clocks(spent: dict[str, float]) -> Iterator[None]:
    """Accumulate the seconds that a save spends in file operations."""
    functions = {"fsync": (os, "fsync"), "write, hashed in the background": (HashedFile, "write")}
    originals = {what: getattr(owner, name) for what, (owner, name) in functions.items()}

    def timed(what: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return originals[what](*arguments)
            finally:
                spent[what] = spent.get(what, 0.0) + time.perf_counter() - started

        return call

    for what, (owner, name) in functions.items():
        setattr(owner, name, timed(what))
    try:
        yield
    finally:
        for what, (owner, name) in functions.items():
            setattr(owner, name, originals[what])


def write(run: RunDir, content: Content, staging: Staging) -> None:
    write_checkpoint(run, content, staging.tensors(), attempt=1)


def write_raw(path: Path, staging: Staging) -> None:
    """Write the same bytes to one file, from one buffer, then fsync."""
    assert staging._buffer is not None
    content = memoryview(staging._buffer.numpy()).cast("B")
    with open(path, "wb", buffering=0) as file:
        while len(content):
            content = content[file.write(content[: 64 << 20]) :]
        os.fsync(file.fileno())
    path.unlink()


def some_steps(seconds: float = 0.3) -> None:
    """Run a fixed number of matrix products, about `seconds` on one idle core of the first machine."""
    left, right = torch.randn(512, 512), torch.randn(512, 512)
    for _ in range(round(60 * seconds)):
        left = torch.nn.functional.normalize(left @ right)


def clocked(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(numerators: list[float], denominators: list[float]) -> dict[str, float]:
    return machine.spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, nargs="+", default=[5_000_000, 30_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--directory", type=Path, help="directory on the disk to measure; default: the temporary directory"
    )
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as in a plan for one process
    sizes = []
    table = [["quantity", "median", "low", "high"]]
    for num_parameters in arguments.parameters:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            result = measure(num_parameters, arguments.repeats, Path(directory))
        sizes.append(result)
        for key in ("waited_for", "stall", "committed", "raw"):
            table.append(row(f"{result['bytes'] / 1e6:.0f} MB: {key}, s", result["seconds"][key]))
        for key in ("stall_of_waited_for", "bytes_per_s_of_raw", "steps_beside_the_writer"):
            table.append(row(f"{result['bytes'] / 1e6:.0f} MB: {key}", result[key]))
    results = {
        "command": ["python", "benchmarks/checkpoint.py", *sys.argv[1:]],
        "hashes_in_hardware": "sha_ni" in Path("/proc/cpuinfo").read_text(encoding="utf-8"),
        "sizes": sizes,
        "profile": sizes[-1]["profile"],
    }
    machine.write("checkpoint", results, table, arguments.results)


def row(what: str, spread: dict[str, float]) -> list[str]:
    return [what, *(f"{spread[key]:.3f}" for key in ("median", "low", "high"))]


if __name__ == "__main__":
    main()

"""How long the loop stands still for a checkpoint, and how fast its bytes reach the disk.

    python benchmarks/checkpoint.py [--parameters 5000000 30000000] [--repeats 5] [--directory DIR]

For each size: a save that the loop waits for; the stall of one written in the background (copy, ledger, start of the
writer) and its time until committed; and the same bytes written raw, from memory, with one fsync. In turn, so that
what else the machine does meets all alike.
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

from tunesmith.configs.recipe import Optimization
from tunesmith.rundir.hashed_file import HashedFile
from tunesmith.rundir.ledger import Ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint.checkpoints import Content, save_checkpoint, tensors_of, write_checkpoint
from tunesmith.training.checkpoint.staging import Background, Staging
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.plain import PlainEngine

LAYER = 576 * 1536
"""Weights of one matrix: that of SmolLM2-135M's feed-forward blocks."""


def make_engine(num_parameters: int) -> PlainEngine:
    """Matrices of fp32 weights with moments, as after one update."""
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
        state, ledger_line = RunState(step=step, num_updates=step), ([step], [step], 1, 1)
        found: dict[str, float] = {}
        ledger.write(step, *ledger_line)
        started = time.perf_counter()
        with clocks(spent if step > 1 else {}):
            ledger.sync()
            path = save_checkpoint(run, state, engine, attempt=1, fingerprints={})
        found["waited_for"] = time.perf_counter() - started
        num_bytes = sum(file.stat().st_size for file in path.iterdir())
        shutil.rmtree(path)

        found["step"] = clocked(some_steps)
        ledger.write(step, *ledger_line)
        started = time.perf_counter()
        ledger.sync()
        content = Content.of(state, engine, {})
        staging.fill({**content.shapes, **content.moments}, tensors_of(engine))
        background.start(lambda content=content: write(run, content, staging))
        found["stall"] = time.perf_counter() - started
        found["beside"] = clocked(some_steps)
        background.wait()
        found["committed"] = time.perf_counter() - started
        shutil.rmtree(path)

        found["raw"] = clocked(lambda: write_raw(directory / "raw", staging))
        if step > 1:  # the first one makes the buffer and warms the disk's caches
            for key, value in found.items():
                seconds[key].append(value)
        else:
            first_stall = found["stall"]
    return {
        "parameters": sum(p.numel() for p in engine.parameters.values()),
        "bytes": num_bytes,
        "seconds": {key: machine.spread(values) for key, values in seconds.items()},
        "first_stall_s": first_stall,
        "stall_of_waited_for": ratio(seconds["stall"], seconds["waited_for"]),
        "bytes_per_s_of_raw": ratio(seconds["raw"], seconds["waited_for"]),
        "steps_beside_the_writer": ratio(seconds["beside"], seconds["step"]),
        "profile": machine.shares({**spent, "all else": sum(seconds["waited_for"]) - sum(spent.values())}),
    }


@contextmanager
def clocks(spent: dict[str, float]) -> Iterator[None]:
    """Adds up the seconds inside of what a save does with files."""
    known = {"fsync": (os, "fsync"), "write, hashed beside it": (HashedFile, "write")}
    former = {what: getattr(owner, name) for what, (owner, name) in known.items()}

    def under_clock(what: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return former[what](*arguments)
            finally:
                spent[what] = spent.get(what, 0.0) + time.perf_counter() - started

        return call

    for what, (owner, name) in known.items():
        setattr(owner, name, under_clock(what))
    try:
        yield
    finally:
        for what, (owner, name) in known.items():
            setattr(owner, name, former[what])


def write(run: RunDir, content: Content, staging: Staging) -> None:
    write_checkpoint(run, content, staging.tensors(), attempt=1)


def write_raw(path: Path, staging: Staging) -> None:
    """The same bytes as one file, from one buffer, then fsync."""
    assert staging._buffer is not None
    content = memoryview(staging._buffer.numpy()).cast("B")
    with open(path, "wb", buffering=0) as file:
        while len(content):
            content = content[file.write(content[: 64 << 20]) :]
        os.fsync(file.fileno())
    path.unlink()


def some_steps(seconds: float = 0.3) -> None:
    """A fixed amount of matrix products, about `seconds` on one idle core of the first machine."""
    left, right = torch.randn(512, 512), torch.randn(512, 512)
    for _ in range(round(60 * seconds)):
        left = torch.nn.functional.normalize(left @ right)


def clocked(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    return machine.spread([a / b for a, b in zip(above, below, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, nargs="+", default=[5_000_000, 30_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="on the disk that is to be measured; default: the temporary one")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as a plan for one process has it
    sizes = []
    table = [["what", "median", "low", "high"]]
    for num_parameters in arguments.parameters:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            found = measure(num_parameters, arguments.repeats, Path(directory))
        sizes.append(found)
        for key in ("waited_for", "stall", "committed", "raw"):
            table.append(row(f"{found['bytes'] / 1e6:.0f} MB: {key}, s", found["seconds"][key]))
        for key in ("stall_of_waited_for", "bytes_per_s_of_raw", "steps_beside_the_writer"):
            table.append(row(f"{found['bytes'] / 1e6:.0f} MB: {key}", found[key]))
    results = {
        "command": ["python", "benchmarks/checkpoint.py", *sys.argv[1:]],
        "hashes_in_hardware": "sha_ni" in Path("/proc/cpuinfo").read_text(encoding="utf-8"),
        "sizes": sizes,
        "profile": sizes[-1]["profile"],
    }
    machine.write("checkpoint", results, table, arguments.results)


def row(what: str, found: dict[str, float]) -> list[str]:
    return [what, *(f"{found[key]:.3f}" for key in ("median", "low", "high"))]


if __name__ == "__main__":
    main()

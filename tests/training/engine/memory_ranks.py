"""One rank of the tests of running out of memory: `python -m ...memory_ranks DIRECTORY`. Not a test itself.

Trains every engine that repeats a step, first undisturbed, then with memory running out on rank 1, and writes the
results of rank 0 to DIRECTORY/memory.json.
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

from tests.training.engine.zero_ranks import Bench, Setup, end_with
from tunesmith.rundir import faults
from tunesmith.rundir.faults import fault_point
from tunesmith.training.engine.memory import MemoryRanOut

ALL = ("forward", "backward", "within", "reduction", "update")
"""Where memory runs out; `within`: in the middle of a backward pass."""
SETUPS = {
    "plain": (Setup(0), ALL),
    "kernels": (Setup(0, kernels="auto"), ("update",)),
    "8bit": (Setup(0, optimizer="adamw_8bit"), ("update",)),
    "zero1": (Setup(1), ALL),
    "zero1-8bit": (Setup(1, optimizer="adamw_8bit"), ("update",)),
    "zero1-offload": (Setup(1, offload="cpu"), ("update",)),
    "zero1-bf16": (Setup(1, precision="bf16"), ("within",)),
}
STEPS = 6
RATE = 1e-4


def train(bench: Bench, setup: Setup, fault: str = "") -> dict[str, Any]:
    """Losses, weights and shortages of a few steps. fault: on rank 1 in step 3, then with half the micro-batch."""
    engine = bench.build(setup)
    loader, losses, shortages = bench.loader, [], []
    step = 1
    while step <= STEPS:
        inject(engine, fault if step == 3 and not shortages and bench.ranks.rank == 1 else "")
        try:
            sums = engine.train_batch(loader.step_batch(step))
            engine.optim_step(RATE)
        except MemoryRanOut as error:
            shortages.append([error.shortage.rank, error.shortage.phase, error.shortage.agreed])
        else:
            losses.append(sums.loss_sum / sums.num_targets)
            step += 1
            continue
        engine.drop_gradients()
        loader = loader.with_passes(1, 1)
    weights = {name: weight.flatten().tolist() for name, weight in engine.model_tensors()}
    engine.close()
    return {"losses": losses, "weights": weights, "shortages": shortages}


def inject(engine: Any, fault: str) -> None:
    os.environ["TUNESMITH_FAULT"] = f"memory.{fault}=oom"
    faults._fault_counts.clear()
    if fault == "within":
        parameter = next(iter(engine.parameters.values()))  # the embedding: its gradient comes last
        handle = parameter.register_hook(lambda _: (handle.remove(), fault_point("memory.within"))[0])


def main() -> None:
    parent = os.getppid()
    threading.Thread(target=lambda: end_with(parent), daemon=True).start()
    bench = Bench(Path(sys.argv[1]), "memory")
    for name, (setup, phases) in SETUPS.items():
        bench.note(name, train(bench, setup))
        for phase in phases:
            bench.note(f"{name}-{phase}", train(bench, setup, phase))
    bench.finish()


if __name__ == "__main__":
    main()

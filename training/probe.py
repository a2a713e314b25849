"""Trains two steps on the longest batch of a plan, for its memory and time: `python -m tunesmith.training.probe DIR`.

DIR holds plan.json. One process per rank, started as for a run. Nothing is saved; rank 0 writes probe.json.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tunesmith.configs.plan import Plan
from tunesmith.data.index.loader import Loader
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.index.unrelated import ReferenceScores
from tunesmith.errors import ExitCode, TunesmithError
from tunesmith.large_imports import garbage_collection_paused
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.faults import fault_point
from tunesmith.rundir.paths import RunDir
from tunesmith.training.distributed.ranks import Ranks, leave_ranks
from tunesmith.training.loop import peak_memory_bytes
from tunesmith.training.samples import loader_of
from tunesmith.training.worker import start

NUM_STEPS = 2
"""The first also creates kernels, moments and buffers: memory is the peak of both, time that of the second."""


def main() -> int:
    """Run one rank of the probe and return its exit code."""
    parser = argparse.ArgumentParser(description="One rank of a probe.")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    try:
        run, plan, ranks = start(RunDir(directory), attempt=1)
        try:
            _probe(run, plan, ranks)
        finally:
            leave_ranks()
    except TunesmithError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return ExitCode.DONE


def _probe(run: RunDir, plan: Plan, ranks: Ranks) -> None:
    with garbage_collection_paused():
        from tunesmith.training.engine.build import build_engine
    engine = build_engine(plan, ranks)
    index = TokenIndex.open(Path(plan.data.train.index))
    loader = loader_of(plan, index, ranks, _no_reference(plan, index))
    step = longest_step(loader)
    batch, seconds = loader.step_batch(step), 0.0
    for _ in range(NUM_STEPS):
        started = time.perf_counter()
        fault_point("probe.step")
        engine.train_batch(batch)
        engine.optim_step(plan.recipe.optimization.learning_rate)
        if plan.compute.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    peaks = ranks.sum(
        *[float(peak_memory_bytes(plan.compute.device)) * (ranks.rank == n) for n in range(ranks.world_size)]
    )
    if ranks.is_first:
        value = {"peak_bytes": int(max(peaks)), "step_s": seconds, "step": step, "num_tokens": batch.global_num_tokens}
        write_json(run.probe, value)
    ranks.barrier()
    engine.close()


def longest_step(loader: Loader) -> int:
    """The step with the largest micro-batch of any rank, in tokens; the first of several."""
    size, world_size = loader.micro_batch_size, loader.world_size
    best, longest = 1, -1
    for step in range(1, loader.total_steps + 1):
        lengths = loader.index.sample_tokens[loader.step_samples(step)]
        for rank in range(world_size):
            own = lengths[rank::world_size]
            largest = max((int(own[at : at + size].sum()) for at in range(0, len(own), size)), default=0)
            if largest > longest:
                best, longest = step, largest
    return best


def _no_reference(plan: Plan, index: TokenIndex) -> ReferenceScores | None:
    """Zeros for tasks that need reference scores: a step takes the same time and memory with any."""
    if not plan.recipe.needs_reference:
        return None
    documents = np.zeros(index.num_documents, np.float32)
    positions = plan.batch.total_steps * plan.recipe.optimization.global_batch_size
    return ReferenceScores(
        documents, np.zeros(positions, np.float32) if plan.recipe.task_facts.needs_unrelated else None
    )


if __name__ == "__main__":
    sys.exit(main())

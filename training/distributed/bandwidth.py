"""One rank of a bounded all-reduce that `tunesmith doctor` runs between hosts; rank 0 prints its bandwidth as JSON.

Usage: python -m tunesmith.training.distributed.bandwidth RANK WORLD_SIZE ADDRESS PORT TIMEOUT_S
"""

import faulthandler
import json
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

NUM_ELEMENTS = 4 << 20
"""Of fp32: 16 MiB, large enough that the bandwidth and not the latency counts."""
REPEATS = 5


def measure(rank: int, world_size: int, address: str, port: int, timeout_s: float) -> dict[str, object]:
    """Backend, and bus bandwidth in bytes per second: what each rank sends in a ring, 2 (n - 1) / n of the size.

    Raises RuntimeError if a rank does not join in time or a sum is wrong.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        init_method=f"tcp://{address}:{port}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    seconds = []
    for _ in range(1 + REPEATS):  # the first one connects
        values = torch.full((NUM_ELEMENTS,), float(rank + 1), device=device)
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        low, high = float(values.min()), float(values.max())  # waits for the GPU
        seconds.append(time.perf_counter() - start)
        if not low == high == world_size * (world_size + 1) / 2:
            raise RuntimeError(f"the sum of an all-reduce is wrong: {low} to {high}")
    dist.destroy_process_group()
    sent_bytes = 2 * (world_size - 1) / world_size * 4 * NUM_ELEMENTS
    return {"backend": backend, "bytes_per_s": sent_bytes / sorted(seconds[1:])[REPEATS // 2]}


def main() -> None:
    rank, world_size, address, port, timeout_s = sys.argv[1:]
    # The caller may be on another host and gone: this process ends by itself.
    faulthandler.dump_traceback_later(float(timeout_s) + 10, exit=True)
    try:
        result = measure(int(rank), int(world_size), address, int(port), float(timeout_s))
    except RuntimeError as error:
        sys.exit(str(error).splitlines()[0])
    if rank == "0":
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

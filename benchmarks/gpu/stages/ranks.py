"""One process per GPU: a collective gives the right sum at a measured rate, and Triton kernels run on every device."""

import json
import os
import socket
import subprocess
import sys
import time

import torch
import torch.distributed as dist

from benchmarks.gpu.record import Record, Skipped
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.stages.machine import versions


def num_ranks(setting: Setting) -> int:
    """One per visible GPU, two in a rehearsal. Skipped with fewer than two GPUs."""
    count = setting.size(torch.cuda.device_count(), 2)
    if count < 2:
        raise Skipped(f"needs two GPUs, {count} visible")
    return count


def run(setting: Setting, record: Record) -> None:
    count = num_ranks(setting)
    name = torch.cuda.get_device_name() if setting.device == "cuda" else "none (rehearsal)"
    record.figure("gpu", f"{count} x {name}")
    record.figure("versions", versions())
    reports = [json.loads(text) for text in started(setting, count)]
    record.figure("ranks", reports)
    record.check("sum over all ranks", [one["sum"] for one in reports], "equals", [count * (count + 1) / 2] * count)
    expected = [f"cuda:{rank}" if setting.device == "cuda" else "cpu" for rank in range(count)]
    record.check("devices", [one["device"] for one in reports], "equals", expected)
    for rank, one in enumerate(reports):
        record.check(f"rank {rank}: kernel against fp64, relative", one["difference"], "at most", 1e-5)


def started(setting: Setting, count: int) -> list[str]:
    """Run this module once per rank and return what each printed. RuntimeError if one fails."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    processes = []
    for rank in range(count):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "benchmarks.gpu.stages.ranks", setting.device]
        environment = {**os.environ, **ranks, **address}
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    codes = [process.returncode for process in processes]
    if any(codes):
        raise RuntimeError(f"the ranks ended with exit codes {codes}:\n" + "\n".join(outputs))
    return [output.strip().splitlines()[-1] for output in outputs]


def one_rank(device: str) -> dict[str, object]:
    """The work of a rank. Returns the sum of all ranks' numbers, the device, the error of a kernel and the bytes per
    second that a large all-reduce moves per rank."""
    from tunesmith.kernels.rms_norm import rms_norm, rms_norm_triton

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device == "cuda":
        from tunesmith.modeling.cuda import set_up_cuda

        set_up_cuda(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    place = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device("cpu")
    number = torch.tensor([float(rank + 1)], device=place)
    dist.all_reduce(number)
    total = number.item()
    hidden, weight = torch.randn(33, 128, device=place), torch.randn(128, device=place)
    actual, expected = rms_norm_triton(hidden, weight, 1e-5), rms_norm(hidden.double(), weight.double(), 1e-5)
    difference = ((actual.double() - expected).norm() / expected.norm()).item()
    large = torch.ones((1 << 28 if device == "cuda" else 1 << 18), device=place)
    dist.all_reduce(large)
    dist.barrier()
    started_at = time.perf_counter()
    dist.all_reduce(large)
    if device == "cuda":
        torch.cuda.synchronize()
    rate = 2 * (count - 1) / count * large.nbytes / (time.perf_counter() - started_at)
    dist.destroy_process_group()
    return {"sum": total, "device": str(place), "difference": difference, "all_reduce_bytes_per_s": rate}


if __name__ == "__main__":
    print(json.dumps(one_rank(sys.argv[1])))

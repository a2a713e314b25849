"""Ranks of one machine as separate processes."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
Rank = tuple[subprocess.Popen, Path]
"""A process and its log."""


def start_ranks(program: Sequence[str], directory: Path, name: str, world_size: int, port: int) -> list[Rank]:
    """Start `python PROGRAM DIRECTORY NAME` once per rank, in the repository. Logs: DIRECTORY/<NAME>-<rank>.log."""
    processes = []
    for rank in range(world_size):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
        environment |= {"MASTER_ADDR": "127.0.0.1", "TORCH_EXTENSIONS_DIR": str(directory / "extensions")}
        log = directory / f"{name}-{rank}.log"
        with log.open("w") as output:
            call = [sys.executable, *program, str(directory), name]
            process = subprocess.Popen(call, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        processes.append((process, log))
    return processes


def wait_for_ranks(processes: Sequence[Rank], timeout_s: float) -> None:
    """Wait until every rank has ended with exit code 0; then, or if one has not, none is left."""
    try:
        for process, log in processes:
            assert process.wait(timeout=timeout_s) == 0, log.read_text()[-4000:]
    finally:
        for process, _ in processes:
            process.kill()

"""Ranks of one machine as separate processes."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Rank = tuple[subprocess.Popen, Path]
"""A process and its log."""


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """This process's environment with the variables by which a rank finds the others, as torchrun sets them."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    return {**os.environ, **{key: str(value) for key, value in own.items()}, "MASTER_ADDR": "127.0.0.1"}


def start_ranks(
    python: str, program: Sequence[str], directory: Path, name: str, *, world_size: int, port: int
) -> list[Rank]:
    """Start `python PROGRAM DIRECTORY NAME` once per rank, in the repository. Logs: DIRECTORY/<NAME>-<rank>.log."""
    processes = []
    for rank in range(world_size):
        environment = rank_environment(rank, world_size, port)
        environment["TORCH_EXTENSIONS_DIR"] = str(directory / "extensions")
        log = directory / f"{name}-{rank}.log"
        with log.open("w") as output:
            call = [python, *program, str(directory), name]
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


def outputs_of_ranks(python: str, program: Sequence[str], *, world_size: int, port: int, timeout_s: float) -> list[str]:
    """What `python PROGRAM` writes to standard output as each of the ranks; all must end with exit code 0."""
    processes = [
        subprocess.Popen(
            [python, *program],
            env=rank_environment(rank, world_size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        ends = [process.communicate(timeout=timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * world_size, ends
    return [output for output, _ in ends]

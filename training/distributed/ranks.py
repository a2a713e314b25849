"""Rank and world size of this process, and the few collectives that the loop needs."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tunesmith.errors import RunFault, TunesmithError
from tunesmith.training.distributed.flight_recorder import enable_flight_recorder

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """Rank, local rank and world size of this process, with its collectives."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same result on every rank."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank; the same result on every rank, in one collective."""
        if self.world_size == 1:
            return list(flags)
        values = torch.tensor(list(map(int, flags)))
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [bool(value) for value in values.tolist()]

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks, in fp64."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in their order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_first(self, decide: Callable[[], Value]) -> Value:
        """Run `decide` on rank 0 and return its result on every rank; a TunesmithError is raised on all ranks.

        For decisions that depend on files, clocks or the environment: ranks that decide independently could take
        different branches and block each other in different collectives. Any other error of rank 0 is a RunFault on the
        other ranks.
        """
        if self.world_size == 1:
            return decide()
        if not self.is_first:
            value, error = self.broadcast(None)
            if error is not None:
                raise error
            return value
        try:
            value = decide()
        except TunesmithError as error:
            self.broadcast((None, error))
            raise
        except Exception as error:
            what = f"rank 0 failed: {type(error).__name__}: {error}"
            self.broadcast((None, RunFault(what, where="rank 0", remedy="see the log of rank 0")))
            raise
        self.broadcast((value, None))
        return value

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


TIMEOUT_SLACK_S = 60.0
"""Collectives time out this much later than a stage: by then the watchdog has named the rank that hangs."""


def own_rank() -> Ranks:
    """Return the ranks from RANK, LOCAL_RANK and WORLD_SIZE; a single process without them."""
    return Ranks(
        int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    )


def join_ranks(device: str, store: Any = None, *, stage_timeout_s: float = 1800.0) -> Ranks:
    """Initialize the process group, if there are several ranks, and run a first collective.

    store: the torch store of the ranks' rendezvous (`training.distributed.rendezvous`); None: MASTER_ADDR and
    MASTER_PORT are used. stage_timeout_s: as in the recipe; no collective waits longer, by more than TIMEOUT_SLACK_S.
    """
    ranks = own_rank()
    if ranks.world_size > 1:
        enable_flight_recorder()
        # gloo in addition to nccl: the loop's small collectives run on the CPU and never wait for a stream.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        options = {"store": store, "rank": ranks.rank, "world_size": ranks.world_size} if store is not None else {}
        timeout = timedelta(seconds=stage_timeout_s + TIMEOUT_SLACK_S)
        dist.init_process_group(backend, timeout=timeout, **options)
        ranks.barrier()
        if device == "cuda":
            dist.all_reduce(torch.zeros(1, device="cuda"))
            torch.cuda.synchronize()
    return ranks


def leave_ranks() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()

"""Rank and world size of this process, and the few collectives that the loop needs."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tunesmith.errors import TunesmithError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """Rank, local rank and world size of this process, with its collectives."""

    rank: int
    local_rank: int
    world_size: int
    long_group: Any = field(default=None, compare=False, repr=False)
    """Process group whose collectives time out after LONG_TIMEOUT_S; None for a single rank."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same result on every rank."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks, in fp64."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_first(self, decide: Callable[[], Value], *, long_running: bool = False) -> Value:
        """Run `decide` on rank 0 and return its result on every rank; a TunesmithError is raised on all ranks.

        For decisions that depend on files, clocks or the environment: ranks that decide independently could take
        different branches and block each other in different collectives. long_running: `decide` may take as long as an
        export or a download, see `wait`.
        """
        if self.world_size == 1:
            return decide()
        group = self.long_group if long_running else None
        if not self.is_first:
            box: list[Any] = [None]
            dist.broadcast_object_list(box, src=0, group=group)
            value, error = box[0]
            if error is not None:
                raise error
            return value
        try:
            value = decide()
        except TunesmithError as error:
            dist.broadcast_object_list([(None, error)], src=0, group=group)
            raise
        dist.broadcast_object_list([(value, None)], src=0, group=group)
        return value

    def barrier(self) -> None:
        """Wait for all ranks, up to COLLECTIVE_TIMEOUT_S."""
        if self.world_size > 1:
            dist.barrier()

    def wait(self) -> None:
        """A barrier with the long timeout, after work of a single rank: an export, answers, a download."""
        if self.world_size > 1:
            dist.barrier(group=self.long_group)


COLLECTIVE_TIMEOUT_S = 1800.0
"""Timeout of a collective in training. A hanging rank is detected earlier (`training.distributed.watchdog`)."""
LONG_TIMEOUT_S = 7 * 24 * 3600.0


def own_rank() -> Ranks:
    """Return the ranks from RANK, LOCAL_RANK and WORLD_SIZE; a single process without them."""
    return Ranks(
        int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    )


def join_ranks(device: str, store: Any = None) -> Ranks:
    """Initialize the process group, if there are several ranks, and run a first collective.

    store: the torch store of the ranks' rendezvous (`training.distributed.rendezvous`); None: MASTER_ADDR and
    MASTER_PORT are used.
    """
    ranks = own_rank()
    if ranks.world_size > 1:
        # gloo in addition to nccl: the loop's small collectives run on the CPU and never wait for a stream.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        options = {"store": store, "rank": ranks.rank, "world_size": ranks.world_size} if store is not None else {}
        dist.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S), **options)
        ranks = replace(ranks, long_group=dist.new_group(backend="gloo", timeout=timedelta(seconds=LONG_TIMEOUT_S)))
        ranks.barrier()
        if device == "cuda":
            dist.all_reduce(torch.zeros(1, device="cuda"))
            torch.cuda.synchronize()
    return ranks


def leave_ranks() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()

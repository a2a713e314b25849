"""This process among its like: rank, world size, and the few collectives that the loop needs."""

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
    rank: int
    local_rank: int
    world_size: int
    long_group: Any = field(default=None, compare=False, repr=False)
    """Process group whose collectives wait LONG_TIMEOUT_S; None where there is one rank."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: every rank gets the same answer."""
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
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_first(self, decide: Callable[[], Value], *, long_running: bool = False) -> Value:
        """What `decide` returns on rank 0, on every rank; a TunesmithError that it raises there is raised on all.

        For whatever depends on files, clocks or the environment: ranks that each looked for themselves might see
        different things, take different branches and wait for each other in different collectives. `decide` runs on
        rank 0 alone. patient: it may take as long as an export or a download does, see `wait`.
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
        if self.world_size > 1:
            dist.barrier()

    def wait(self) -> None:
        """A barrier after what one rank did alone, and may have taken long for: an export, answers, a download."""
        if self.world_size > 1:
            dist.barrier(group=self.long_group)


COLLECTIVE_TIMEOUT_S = 1800.0
"""Of a collective in training. A hanging rank is found long before (`training.watchdog`)."""
LONG_TIMEOUT_S = 7 * 24 * 3600.0


def own_rank() -> Ranks:
    """From RANK, LOCAL_RANK and WORLD_SIZE; a single process without them."""
    return Ranks(
        int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    )


def join_ranks(device: str, store: Any = None) -> Ranks:
    """Start the process group of several ranks and run a first collective through it.

    store: the torch store in which the ranks have met (`training.rendezvous`); None: MASTER_ADDR and MASTER_PORT tell.
    """
    ranks = own_rank()
    if ranks.world_size > 1:
        # gloo beside nccl: the loop's small agreements travel on the CPU and never wait for a stream.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        place = {"store": store, "rank": ranks.rank, "world_size": ranks.world_size} if store is not None else {}
        dist.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S), **place)
        ranks = replace(ranks, long_group=dist.new_group(backend="gloo", timeout=timedelta(seconds=LONG_TIMEOUT_S)))
        ranks.barrier()
        if device == "cuda":
            dist.all_reduce(torch.zeros(1, device="cuda"))
            torch.cuda.synchronize()
    return ranks


def leave_ranks() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()

"""Running out of memory in a step: all ranks agree on it where they meet, so that the step can be repeated.

Plain data parallelism and ZeRO-1 reduce gradients only at the end of a step. Until then the work of a rank has no
collectives: it runs in parts (a micro-batch; what the reduction and the update allocate), and after each the ranks
agree whether memory ran out on any of them. ZeRO-2 and 3 reduce and gather within a pass: there the rank that runs out
ends the attempt.

Only refused memory counts. An error of another kind is never taken for one: repeating the step would hide it.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from tunesmith.data.index.loader import MicroBatch
from tunesmith.freed_memory import return_freed_memory
from tunesmith.rundir.faults import fault_point
from tunesmith.training.distributed.ranks import Ranks

Value = TypeVar("Value")
Phase = Literal["forward", "backward", "reduction", "update"]


@dataclass(frozen=True)
class Shortage:
    """Where memory ran out. num_tokens, num_documents: of the pass in progress, or of the step's largest pass if memory
    ran out after the last one. phase: None: unknown, in the middle of a collective operation or of the update.
    agreed: whether every rank knows, and no rank has changed weights or optimizer state."""

    rank: int
    phase: Phase | None
    num_tokens: int
    num_documents: int
    agreed: bool


class MemoryRanOut(Exception):
    """Memory ran out on some rank. If the shortage is agreed on, every rank raises this, at the same place."""

    def __init__(self, shortage: Shortage):
        super().__init__(f"memory ran out on rank {shortage.rank}: {shortage.phase}")
        self.shortage = shortage


_REFUSALS = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch's errors say if memory is refused outside of its own allocator: to the CPU, to the CUDA driver, or to a
library for its workspace, which happens first when torch's allocator holds nearly all of a GPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: by torch's allocators, by Python's, or to a library that torch calls."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(refusal in str(error) for refusal in _REFUSALS)


class MemoryWatch:
    """Runs the parts of a step. together: whether the ranks agree after each part; otherwise a rank raises alone."""

    def __init__(self, ranks: Ranks, *, together: bool):
        self._ranks, self.together = ranks, together
        self._phase: Phase = "forward"

    def enter(self, phase: Phase) -> None:
        """Name what the part does from here on. Faults of tests: `memory.<phase>`."""
        self._phase = phase
        fault_point(f"memory.{phase}")

    def run(self, work: Callable[[], Value], micro_batch: MicroBatch) -> Value:
        """Return the result of `work`, which calls `enter` first; if ranks agree, it must not contain collectives.

        micro_batch: in progress. Raises MemoryRanOut.
        """
        failed, result = False, None
        try:
            result = work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        # The error is deleted here: its traceback would keep the tensors of every frame.
        own = Shortage(
            self._ranks.rank, self._phase, len(micro_batch.tokens), len(micro_batch.lengths), agreed=self.together
        )
        if not self.together:
            if failed:
                raise MemoryRanOut(own)
        elif self._ranks.any(failed):
            shortages = [other for other in self._ranks.gather(own if failed else None) if other is not None]
            raise MemoryRanOut(min(shortages, key=lambda shortage: shortage.num_documents))
        return result  # type: ignore[return-value]


def largest(micro_batches: list[MicroBatch]) -> MicroBatch:
    """Return the micro-batch with the most tokens."""
    return max(micro_batches, key=lambda micro_batch: len(micro_batch.tokens))


def reserve(num_bytes: int, device: torch.device | str) -> None:
    """Allocate memory that a following operation will need, and return it to torch's allocator, which keeps it."""
    torch.empty(num_bytes, dtype=torch.uint8, device=device)


def release_cached_memory() -> None:
    """Free what a step has left: objects in cycles, and the blocks that torch and the C library keep for reuse."""
    gc.collect()
    return_freed_memory()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()

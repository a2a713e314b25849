"""Time of kernels on a device that works asynchronously, without the time that the host takes to launch them.

A kernel that spins is queued first, for longer than all launches take. The measured kernels therefore wait in the queue
and run back to back between two events, however slow the host is. Inputs rotate through more memory than the cache
holds, as in a model, where other layers have replaced them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any, Protocol

import torch

MARGIN = 2.0
"""The spinning kernel takes this many times the measured time of the launches."""
ATTEMPTS = 6


class Device(Protocol):
    """What the measurement needs of a device."""

    cache_bytes: int
    """Size of the last-level cache."""

    def spin(self, seconds: float) -> None:
        """Queue a kernel that takes at least this long."""

    def mark(self) -> Any:
        """Queue an event."""

    def has_passed(self, mark: Any) -> bool:
        """Whether the device has reached an event."""
        ...

    def seconds_between(self, first: Any, last: Any) -> float:
        """Wait for the last event and return the time between both."""
        ...


class CudaDevice:
    """The current CUDA device."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.cache_bytes = properties.L2_cache_size
        # `_sleep` counts cycles of the SM clock, whose rate is at most this one (kHz): it spins at least as long.
        self._cycles_per_s = 1e3 * getattr(properties, "clock_rate", 2_000_000)

    def spin(self, seconds: float) -> None:
        torch.cuda._sleep(int(seconds * self._cycles_per_s))

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def has_passed(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def seconds_between(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        last.synchronize()
        return first.elapsed_time(last) / 1e3


def kernel_seconds(device: Device, calls: Sequence[Callable[[], object]], *, repeats: int) -> float:
    """Return the device's seconds per call, averaged over `repeats` calls in turn.

    Each call launches kernels and must not wait for them. Raises RuntimeError if the launches outlast the spinning
    kernel every time: the time between the events would contain them.
    """
    for call in calls:  # compiles, and fills the allocator's cache
        call()
    device.seconds_between(device.mark(), device.mark())
    started = time.perf_counter()
    for call in islice(cycle(calls), repeats):
        call()
    host_s = time.perf_counter() - started
    device.seconds_between(device.mark(), device.mark())
    for _ in range(ATTEMPTS):
        device.spin(MARGIN * host_s)
        first = device.mark()
        for call in islice(cycle(calls), repeats):
            call()
        queued_in_time = not device.has_passed(first)
        seconds = device.seconds_between(first, device.mark())
        if queued_in_time:
            return seconds / repeats
        host_s *= 2
    raise RuntimeError(f"launching {repeats} calls took longer than the device was kept busy; repeat fewer")


def rotation(make: Callable[[], tuple[torch.Tensor, ...]], cache_bytes: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield sets of inputs until they hold three times the cache: a set is never cached when it is used again."""
    total = 0
    while total < 3 * cache_bytes or total == 0:
        inputs = make()
        total += max(1, sum(tensor.nbytes for tensor in inputs))
        yield inputs

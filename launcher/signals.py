"""Handles stop signals within a block."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


@contextmanager
def on_signals(act: Callable[[], None], numbers: Sequence[signal.Signals] = STOP_SIGNALS) -> Iterator[None]:
    """Call `act` on these signals within the block, then restore the previous handlers. Main thread only."""
    before = {number: signal.signal(number, lambda *_: act()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Signals that ask for an end, handled for the time of a block."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


@contextmanager
def on_signals(act: Callable[[], None], numbers: Sequence[signal.Signals] = ASKING) -> Iterator[None]:
    """Call `act` at every one of these signals; the handlers from before stand again afterwards. In the main thread."""
    before = {number: signal.signal(number, lambda *_: act()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

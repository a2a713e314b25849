"""Stop strings in complete or streamed text."""

from collections.abc import Sequence


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Position at which to cut the text: before the stop string that is complete first; of several that end at the same
    position, before the longest. So the cut does not depend on how the text was split. Empty stop strings are
    ignored."""
    matches = [(position + len(stop), position) for stop in stops if stop and (position := text.find(stop)) >= 0]
    return min(matches)[1] if matches else None


class StopScanner:
    """Releases streamed text once it cannot be the start of a stop string: no part of a stop string is output."""

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stop for stop in stops if stop)
        self.stopped = False
        self._held = ""

    def add(self, text: str) -> str:
        """Text that is final; empty after a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        if (cut := find_stop(text, self.stops)) is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        start = len(text) - max((overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[start:]
        return text[:start]

    def finish(self) -> str:
        """The text held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, marker: str) -> int:
    """Length of the longest suffix of the text that is a proper prefix of the marker."""
    return next(
        (length for length in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:length])), 0
    )

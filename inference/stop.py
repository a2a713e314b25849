"""Stop strings in a text that arrives in pieces: nothing of one is ever given out."""

from collections.abc import Sequence


class StopScanner:
    """Gives text out as soon as it cannot be the beginning of a stop string.

    The stop string that is complete first ends the text; of several that end at one place, the longest. So the cut does
    not depend on how the text was divided into pieces. Empty stop strings are left out.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stop for stop in stops if stop)
        self.stopped = False
        self._held = ""

    def add(self, text: str) -> str:
        """What may be shown now; nothing more once a stop string was met."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(place + len(stop), place) for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        begun = len(text) - max((overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[begun:]
        return text[:begun]

    def finish(self) -> str:
        """What was held back, where no more text comes."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, mark: str) -> int:
    """Characters at the end of the text with which the mark may have begun."""
    return next((length for length in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:length])), 0)

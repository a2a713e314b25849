"""Stop strings: where they cut a text, also one that arrives in pieces."""

from collections.abc import Sequence


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the text is cut: before the stop string that is complete first; of several that end at one place, the
    longest. So the cut does not depend on how the text was divided into pieces. Empty stop strings are left out."""
    found = [(place + len(stop), place) for stop in stops if stop and (place := text.find(stop)) >= 0]
    return min(found)[1] if found else None


class StopScanner:
    """Gives text out as soon as it cannot be the beginning of a stop string: nothing of one is ever shown."""

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stop for stop in stops if stop)
        self.stopped = False
        self._held = ""

    def add(self, text: str) -> str:
        """What may be shown now; nothing more once a stop string was met."""
        if self.stopped:
            return ""
        text = self._held + text
        if (cut := find_stop(text, self.stops)) is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
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

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
        begun = len(text) - self._begun(text)
        self._held = text[begun:]
        return text[:begun]

    def finish(self) -> str:
        """What was held back, where no more text comes."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """Characters at the end of the text that a stop string may have begun with: the most of any."""
        longest = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

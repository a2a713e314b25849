"""Stops a study whose trials fail one after another for a reason that has nothing to do with their values."""

import re

from tunesmith.errors import RunFault

MAX_REFUSALS = 5
"""Consecutive trials that fail before their first step, for the same reason apart from numbers."""


class Refusals:
    """Counts such trials. A full disk or a failed GPU must not use up the trials of a study."""

    def __init__(self) -> None:
        self._reason, self._count, self._last = "", 0, ""

    def note(self, *, reason: str | None, steps: int) -> None:
        """Count the end of a trial. reason: of a failed one; None for other outcomes."""
        pattern = re.sub(r"\d[\d.,]*", "0", reason or "")
        if reason is None or steps > 0:
            pattern = ""
        self._count = self._count + 1 if pattern and pattern == self._reason else int(bool(pattern))
        self._reason, self._last = pattern, reason or ""

    @property
    def fault(self) -> RunFault | None:
        """The error that ends the study's command, once MAX_REFUSALS trials have failed alike."""
        if self._count < MAX_REFUSALS:
            return None
        return RunFault(
            f"{self._count} trials in a row failed before their first step: {self._last}",
            remedy="correct the cause, or the search space; the same command continues with other values",
        )

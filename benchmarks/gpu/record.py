"""What a stage of the acceptance script measured: written to a file at every entry, so that nothing is lost if the
process is killed. Standard library only: the parent process must not touch the GPU."""

import json
import math
import os
from pathlib import Path
from typing import Any, Literal

Sense = Literal["at most", "at least", "equals"]
"""How a measured value is compared with its limit."""


class Skipped(Exception):
    """Raised by a stage that cannot run here; the message says why."""


class Record:
    """Results of one stage.

    figures: measured values by name, without a limit. checks: correctness; a check that does not hold fails the stage.
    goals: speed and memory; a missed goal is reported and does not fail the stage. left_out: parts that did not run,
    with the reason.
    """

    def __init__(self, path: Path):
        self._path = path
        self.content: dict[str, Any] = {"figures": {}, "checks": [], "goals": [], "left_out": {}}
        self._write()

    def figure(self, name: str, value: Any) -> None:
        """Record a measured value: a number, a text, or a JSON object. Units are part of the name."""
        self.content["figures"][name] = value
        self._write()

    def check(self, what: str, measured: Any, sense: Sense, limit: Any) -> bool:
        """Record whether a correctness condition holds. Returns whether it does."""
        return self._compare("checks", what, measured, sense, limit)

    def goal(self, what: str, measured: float, sense: Sense, limit: float) -> bool:
        """Record whether a goal of speed or memory is met. Returns whether it is."""
        return self._compare("goals", what, measured, sense, limit)

    def leave_out(self, what: str, why: str) -> None:
        """Record a part that did not run."""
        self.content["left_out"][what] = why
        self._write()

    def end(self, status: str, reason: str = "") -> None:
        """Record the outcome of the stage."""
        self.content |= {"status": status, "reason": reason}
        self._write()

    @property
    def failed_checks(self) -> list[str]:
        return [check["what"] for check in self.content["checks"] if not check["holds"]]

    def _compare(self, kind: str, what: str, measured: Any, sense: Sense, limit: Any) -> bool:
        holds = compare(measured, sense, limit)
        entry = {"what": what, "measured": measured, "sense": sense, "limit": limit, "holds": holds}
        self.content[kind].append(entry)
        self._write()
        return holds

    def _write(self) -> None:
        write_json(self._path, self.content)


def compare(measured: Any, sense: Sense, limit: Any) -> bool:
    """Whether a value is within its limit. NaN never is."""
    if sense == "equals":
        return bool(measured == limit)
    if math.isnan(measured):
        return False
    return bool(measured <= limit if sense == "at most" else measured >= limit)


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one operation. Values that JSON does not have are written as text."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(_plain(content), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)

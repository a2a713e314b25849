"""What the checks of `tunesmith doctor` return."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """severity: error: runs fail or are wrong here; warning: runs may fail or be slow; note: for information.
    what: what was seen. why: why it matters. what_to_do: the remedy."""

    check: str
    severity: Severity
    what: str
    why: str
    what_to_do: str


@dataclass(frozen=True)
class Result:
    """One check that was run. seen: what it examined, in one line."""

    check: str
    seen: str
    findings: tuple[Finding, ...] = ()


def has_errors(results: list[Result]) -> bool:
    return any(finding.severity == "error" for result in results for finding in result.findings)

"""Rows without what tells who they are about: found, replaced consistently inside a row, counted. Before all else.

Applied to what a line holds, before it is tokenised, cached, receipted or logged. Of a row that is refused nothing is
kept but the reason, and that passes through the same replacement.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tunesmith.configs.recipe import Deidentify
from tunesmith.data.deidentification.recognizers import Finding, find
from tunesmith.data.deidentification.surrogates import Surrogates, words_of
from tunesmith.data.refusal import Refusal

_STRUCTURE = frozenset(("role", "from", "type", "id", "tool_call_id", "weight"))
"""Keys of what stands in a list (messages, turns, tool calls) whose values are words of a format, not of a person."""
REVISION = 2
"""Raise it when the same rows would get other surrogates."""


def deidentified(value: Any, wanted: Deidentify) -> tuple[Any, Counter[str]]:
    """A row (or a text) with surrogates, and how many places of each kind were replaced.

    Keys stay, and the values of wanted.skip, and those of `_STRUCTURE` inside of lists. A number is looked at as it is
    written, and its surrogate is a number where it can be. Raises InputError where Presidio is not installed.
    """
    if isinstance(value, Refusal):
        reason, remedy = (deidentified(text, wanted)[0] for text in (value.reason, value.remedy))
        return Refusal(value.code, reason, remedy), Counter()
    texts: list[str] = []
    skipped = frozenset(wanted.skip)
    _mapped(value, skipped, lambda text: texts.append(text) or text)
    kinds = frozenset(wanted.kinds)
    findings = [find(text, kinds, wanted.spacy_model) for text in texts]
    if not any(findings):
        return value, Counter()
    findings = _with_echoes(texts, findings)
    surrogates = Surrogates("\x1f".join(map(_skeleton, texts, findings)), wanted.seed)
    # Whole names first, in the order of the row: a part of one that stands alone takes the surrogate of that part.
    people = [
        text[f.start : f.stop] for text, found in zip(texts, findings, strict=True) for f in found if f.kind == "person"
    ]
    for name in sorted(people, key=lambda name: -len(name.split())):
        surrogates.of("person", name)
    cleaned = iter([_replaced(text, found, surrogates) for text, found in zip(texts, findings, strict=True)])
    counts = Counter(finding.kind for found in findings for finding in found)
    return _mapped(value, skipped, lambda _: next(cleaned)), counts


def _with_echoes(texts: list[str], findings: list[list[Finding]]) -> list[list[Finding]]:
    """Also what was found in one place of the row wherever else it stands in it: a family name by itself, a number."""
    found = [(f.kind, text[f.start : f.stop]) for text, each in zip(texts, findings, strict=True) for f in each]
    names = {word for kind, original in found if kind == "person" for word in words_of(original) if len(word) > 2}
    patterns = [("person", re.compile(rf"(?<!\w){_any(names)}(?!\w)", re.IGNORECASE))] if names else []
    others = {original for kind, original in found if kind != "person" and len(original) > 2}
    kinds = {original: kind for kind, original in found}
    patterns += [(kinds[original], re.compile(re.escape(original))) for original in sorted(others, key=_longest_first)]
    return [_extended(text, each, patterns) for text, each in zip(texts, findings, strict=True)]


def _extended(text: str, findings: list[Finding], patterns: list[tuple[str, re.Pattern[str]]]) -> list[Finding]:
    extended = list(findings)
    for kind, pattern in patterns:
        for match in pattern.finditer(text):
            start, stop = match.span()
            if all(stop <= other.start or start >= other.stop for other in extended):
                extended.append(Finding(start, stop, kind, 1.0))
    return sorted(extended, key=lambda finding: finding.start)


def _skeleton(text: str, findings: list[Finding]) -> str:
    pieces, place = [], 0
    for finding in findings:
        pieces += [text[place : finding.start], f"\x1e{finding.kind}\x1e"]
        place = finding.stop
    return "".join([*pieces, text[place:]])


def _replaced(text: str, findings: list[Finding], surrogates: Surrogates) -> str:
    pieces, place = [], 0
    for finding in findings:
        pieces += [text[place : finding.start], surrogates.of(finding.kind, text[finding.start : finding.stop])]
        place = finding.stop
    return "".join([*pieces, text[place:]])


def _longest_first(original: str) -> tuple[int, str]:
    return -len(original), original


def _any(words: Iterable[str]) -> str:
    return "(?:" + "|".join(map(re.escape, sorted(words, key=_longest_first))) + ")"


def _mapped(value: Any, skipped: frozenset[str], change: Callable[[str], str], in_list: bool = False) -> Any:
    """The value with every text and number in it changed, in the order in which it stands. in_list: it is an item."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        said = str(value)
        changed = change(said)
        return value if changed == said else _number_like(value, changed)
    if isinstance(value, list):
        return [_mapped(item, skipped, change, in_list=True) for item in value]
    if isinstance(value, dict):
        kept = skipped | _STRUCTURE if in_list else skipped
        return {key: item if key in kept else _mapped(item, skipped, change) for key, item in value.items()}
    return value


def _number_like(value: float, text: str) -> float | str:
    """The text as a number of the value's type; as it is where it is none."""
    try:
        return type(value)(text)
    except ValueError:
        return text

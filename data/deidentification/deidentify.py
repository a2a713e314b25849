"""De-identify rows: detect identifying text, replace it consistently within a row, and count the replacements.

Applied to the content of a line before it is tokenized, cached, logged or written to receipts. Of a rejected row only
the reason is kept, with the same replacements.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tunesmith.configs.sections.data import Deidentify
from tunesmith.data.deidentification.recognizers import Finding, find
from tunesmith.data.deidentification.surrogates import Surrogates, words_of
from tunesmith.data.refusal import Refusal

_STRUCTURE = frozenset(("role", "from", "type", "id", "tool_call_id", "weight"))
"""Keys in list items (messages, turns, tool calls) whose values belong to the format, not to the content."""
REVISION = 2
"""Increase it when the same rows would get different surrogates."""


def deidentified(value: Any, settings: Deidentify) -> tuple[Any, Counter[str]]:
    """Return a row (or a text) with surrogates, and the number of replacements by kind.

    Keys are not changed, nor are the values of settings.skip and, in list items, of `_STRUCTURE`. A number is processed
    as text, and its surrogate is a number if possible. Raises InputError if Presidio is not installed.
    """
    if isinstance(value, Refusal):
        reason, remedy = (deidentified(text, settings)[0] for text in (value.reason, value.remedy))
        return Refusal(value.code, reason, remedy), Counter()
    texts: list[str] = []
    skipped = frozenset(settings.skip)
    _mapped(value, skipped, lambda text: texts.append(text) or text)
    kinds = frozenset(settings.kinds)
    findings = [find(text, kinds, settings.spacy_model) for text in texts]
    if not any(findings):
        return value, Counter()
    findings = _with_repeats(texts, findings)
    surrogates = Surrogates("\x1f".join(map(_skeleton, texts, findings)), settings.seed)
    # Full names first, in row order: a part of one that occurs alone then gets that part's surrogate.
    people = [
        text[f.start : f.stop] for text, each in zip(texts, findings, strict=True) for f in each if f.kind == "person"
    ]
    for name in sorted(people, key=lambda name: -len(name.split())):
        surrogates.of("person", name)
    cleaned = iter([_replaced(text, each, surrogates) for text, each in zip(texts, findings, strict=True)])
    counts = Counter(finding.kind for each in findings for finding in each)
    return _mapped(value, skipped, lambda _: next(cleaned)), counts


def _with_repeats(texts: list[str], findings: list[list[Finding]]) -> list[list[Finding]]:
    """Add all other occurrences in the row of text that was detected once: a family name alone, a number."""
    originals = [(f.kind, text[f.start : f.stop]) for text, each in zip(texts, findings, strict=True) for f in each]
    names = {word for kind, original in originals if kind == "person" for word in words_of(original) if len(word) > 2}
    patterns = [("person", re.compile(rf"(?<!\w){_any(names)}(?!\w)", re.IGNORECASE))] if names else []
    others = {original for kind, original in originals if kind != "person" and len(original) > 2}
    kinds = {original: kind for kind, original in originals}
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
    """Return the value with all its strings and numbers changed, in order. in_list: the value is a list item."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        written = str(value)
        changed = change(written)
        return value if changed == written else _number_like(value, changed)
    if isinstance(value, list):
        return [_mapped(item, skipped, change, in_list=True) for item in value]
    if isinstance(value, dict):
        kept = skipped | _STRUCTURE if in_list else skipped
        return {key: item if key in kept else _mapped(item, skipped, change) for key, item in value.items()}
    return value


def _number_like(value: float, text: str) -> float | str:
    """Convert the text to a number of the value's type; return it unchanged if it is not one."""
    try:
        return type(value)(text)
    except (TypeError, ValueError):  # TypeError: a label with a name, which is kept
        return value if type(value) not in (int, float) else text

"""Rows without what tells who they are about: found, replaced consistently inside a row, counted. Before all else.

Applied to what a line holds, before it is tokenised, cached, receipted or logged. Of a row that is refused nothing is
kept but the reason, and that passes through the same replacement.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunesmith.configs.recipe import Deidentify
from tunesmith.data.documents import Prepared
from tunesmith.data.recognisers import Finding, find
from tunesmith.data.refusal import Refusal
from tunesmith.data.surrogates import Surrogates

if TYPE_CHECKING:
    from tunesmith.data.encoders import RowEncoder

_STRUCTURE = frozenset(("role", "from", "type", "id", "tool_call_id", "weight"))
"""Keys whose values are words of a format, not of a person."""


class DeidentifyingEncoder:
    """An encoder that never sees an original."""

    withholds = True

    def __init__(self, inner: "RowEncoder", wanted: Deidentify):
        self.inner, self.wanted = inner, wanted
        self.tokenizer, self.task = inner.tokenizer, inner.task
        self.max_seq_len, self.too_long = inner.max_seq_len, inner.too_long
        self.options = {**inner.options, "deidentify": wanted.model_dump()}

    def encode(self, values: Iterable[Any]) -> list[Prepared]:
        """As the inner encoder's, with `found` filled in."""
        cleaned = [deidentified(value, self.wanted) for value in values]
        results = self.inner.encode([value for value, _ in cleaned])
        return [
            replace(
                result,
                found=dict(found),
                reason=deidentified(result.reason, self.wanted)[0] if result.reason else "",
            )
            for result, (_, found) in zip(results, cleaned, strict=True)
        ]


def deidentified(value: Any, wanted: Deidentify) -> tuple[Any, Counter[str]]:
    """A row (or a text) with surrogates, and how many places of each kind were replaced.

    Keys and the values of `_STRUCTURE` and of wanted.skip stay. Raises InputError where Presidio is not installed.
    """
    if isinstance(value, Refusal):
        return Refusal(deidentified(value.reason, wanted)[0], value.remedy), Counter()
    texts: list[str] = []
    skipped = _STRUCTURE | set(wanted.skip)
    _mapped(value, skipped, lambda text: texts.append(text) or text)
    kinds = frozenset(wanted.kinds)
    findings = [find(text, kinds, wanted.spacy_model) for text in texts]
    if not any(findings):
        return value, Counter()
    surrogates = Surrogates("\x1f".join(map(_skeleton, texts, findings)), wanted.seed)
    # Names first, in the order of the row: what is found elsewhere may hold one of their words.
    for text, found in zip(texts, findings, strict=True):
        for finding in sorted(found, key=lambda f: -(f.stop - f.start)):
            if finding.kind == "person":
                surrogates.of("person", text[finding.start : finding.stop])
    counts: Counter[str] = Counter()
    originals = {(f.kind, text[f.start : f.stop]) for text, found in zip(texts, findings, strict=True) for f in found}
    cleaned = iter([_replaced(text, found, surrogates, counts) for text, found in zip(texts, findings, strict=True)])
    return _mapped(value, skipped, lambda _: _echoes(next(cleaned), originals, surrogates, counts)), counts


def _skeleton(text: str, findings: list[Finding]) -> str:
    pieces, place = [], 0
    for finding in findings:
        pieces += [text[place : finding.start], f"\x1e{finding.kind}\x1e"]
        place = finding.stop
    return "".join([*pieces, text[place:]])


def _replaced(text: str, findings: list[Finding], surrogates: Surrogates, counts: Counter[str]) -> str:
    pieces, place = [], 0
    for finding in findings:
        pieces += [text[place : finding.start], surrogates.of(finding.kind, text[finding.start : finding.stop])]
        counts[finding.kind] += 1
        place = finding.stop
    return "".join([*pieces, text[place:]])


def _echoes(text: str, originals: set[tuple[str, str]], surrogates: Surrogates, counts: Counter[str]) -> str:
    """Replace what was found in one place of the row wherever it stands in it: a family name by itself, a number."""

    def word(match: re.Match[str]) -> str:
        made = surrogates.name_words[match.group().lower()]
        counts["person"] += 1
        return made.upper() if match.group().isupper() and len(match.group()) > 1 else made

    names = sorted((name for name in surrogates.name_words if len(name) > 2), key=len, reverse=True)
    if names:
        text = re.sub(rf"(?<![\w]){_any(names)}(?![\w])", word, text, flags=re.IGNORECASE)
    for kind, original in sorted(originals, key=lambda pair: (-len(pair[1]), pair)):
        if kind != "person" and original.strip() and original in text:
            counts[kind] += text.count(original)
            text = text.replace(original, surrogates.of(kind, original))
    return text


def _any(words: list[str]) -> str:
    return "(?:" + "|".join(map(re.escape, words)) + ")"


def _mapped(value: Any, skipped: set[str] | frozenset[str], change: Callable[[str], str]) -> Any:
    """The value with every text in it changed, in the order in which it stands."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, skipped, change) for item in value]
    if isinstance(value, dict):
        return {key: item if key in skipped else _mapped(item, skipped, change) for key, item in value.items()}
    return value

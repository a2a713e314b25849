"""Detect identifying text: Presidio's recognizers, and additional ones for names, dates and record numbers.

Presidio detects names with a statistical model only, and no package includes one. The recognizers here detect names by
context (Dr., patient, daughter) and by lists of frequent names; a spaCy model can be added. Rare names without such
context are missed: check the report and the rows before relying on it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tunesmith.data.deidentification.name_lists import FAMILY, GIVEN, NOT_NAMES
from tunesmith.errors import InputError

_MONTH = r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"  # noqa: E501
_WORD = r"[A-Z][a-zà-öø-ÿ]+(?:['’\-][A-Z][a-zà-öø-ÿ]+)*"
_NAME_WORD = rf"(?:(?:Mc|Mac|O['’]|D['’])?{_WORD}|[A-Z]\.)"
_TITLE = r"(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Doctor|Nurse|Sister|Rev|Sir|Dame|Judge|Officer)\.?"
_ROLE = (
    r"(?:[Pp]atient|[Nn]ame|[Pp]hysician|[Ss]urgeon|[Pp]rovider|[Ss]igned(?:\s+by)?|[Dd]ictated\s+by|[Aa]ttending|"
    r"[Rr]eferred\s+by|[Ss]een\s+by|[Cc]aregiver|[Cc]ontact|[Ww]ife|[Hh]usband|[Ss]on|[Dd]aughter|[Mm]other|[Ff]ather|"
    r"[Bb]rother|[Ss]ister|[Pp]artner|[Nn]eighbou?r|[Ff]riend|[Rr]egards|[Mm]y name is|I am|[Cc]alled)"
)
_NAMES = (
    (re.compile(rf"\b{_TITLE}\s+((?:{_NAME_WORD}\s+){{0,2}}{_WORD}|(?:O['’]|Mc|Mac){_WORD})"), 0.9),
    (re.compile(rf"\b{_ROLE}\s*[:,\-]?\s+((?:{_NAME_WORD}\s+){{1,2}}(?:Mc|Mac|O['’])?{_WORD})"), 0.8),
    (re.compile(rf"\b[Nn]ame\s*:\s*((?:{_NAME_WORD}\s+){{0,2}}{_WORD})"), 0.8),
)
_CAPITALISED = re.compile(rf"\b(?:(?:Mc|Mac|O['’])?{_WORD}|[A-Z][A-Z'’\-]+[A-Z])\b")


@dataclass(frozen=True)
class Finding:
    """Identifying text at text[start:stop]. kind: one of the recipe's kinds. score: confidence, 0 to 1."""

    start: int
    stop: int
    kind: str
    score: float


def find(text: str, kinds: frozenset[str], spacy_model: str | None) -> list[Finding]:
    """Return non-overlapping findings in text order; on overlap the higher score wins, then the longer finding.

    Raises InputError if Presidio or the spaCy model is not installed.
    """
    candidates = [finding for finding in _all(text, spacy_model) if finding.kind in kinds]
    kept: list[Finding] = []
    for finding in sorted(candidates, key=lambda f: (-f.score, f.start - f.stop, f.start)):
        if all(finding.stop <= other.start or finding.start >= other.stop for other in kept):
            kept.append(finding)
    return sorted(kept, key=lambda finding: finding.start)


def _all(text: str, spacy_model: str | None) -> Iterator[Finding]:
    for recognizer, kind in _recognizers():
        for result in recognizer.analyze(text, recognizer.supported_entities, None):
            start = result.start  # skip the colon and spaces after the patterns' lookbehind
            while start < result.end and text[start] in " :#.\t\n":
                start += 1
            yield Finding(start, result.end, kind, max(result.score, 0.3))
    yield from _names(text)
    if spacy_model is not None:
        for entity in _pipeline(spacy_model)(text).ents:
            if entity.label_ in ("PERSON", "PER"):
                yield Finding(entity.start_char, entity.end_char, "person", 0.85)


def _names(text: str) -> Iterator[Finding]:
    for pattern, score in _NAMES:
        for match in pattern.finditer(text):
            start, stop = _without_common_words(text, *match.span(1))
            if start < stop:
                yield Finding(start, stop, "person", score)
    words = list(_CAPITALISED.finditer(text))
    for number, word in enumerate(words):
        if (lower := word.group().lower()) not in GIVEN and lower not in FAMILY:
            continue
        stop = word.end()
        following = words[number + 1] if number + 1 < len(words) else None
        # A given name includes the capitalized word after it, even if that is not in the lists.
        if lower in GIVEN and following and re.fullmatch(r"\s+(?:[A-Z]\.\s+)?", text[stop : following.start()]):
            stop = following.end() if following.group().lower() not in NOT_NAMES else stop
        yield Finding(word.start(), stop, "person", 0.7 if stop > word.end() else 0.6)


def _without_common_words(text: str, start: int, stop: int) -> tuple[int, int]:
    """Strip words that are not names from both ends of a name."""
    words = [(start + m.start(), start + m.end()) for m in re.finditer(r"\S+", text[start:stop])]
    while words and text[slice(*words[0])].strip(".,:").lower() in NOT_NAMES:
        words.pop(0)
    while words and text[slice(*words[-1])].strip(".,:").lower() in NOT_NAMES:
        words.pop()
    return (words[0][0], words[-1][1]) if words else (start, start)


@cache
def _recognizers() -> list[tuple[Any, str]]:
    """Return Presidio's recognizers, each with the recipe's kind. They are stateless, so threads may share them."""
    try:
        from presidio_analyzer import Pattern, PatternRecognizer
        from presidio_analyzer import predefined_recognizers as predefined
    except ImportError as error:
        raise InputError(
            "data.deidentify requires Presidio, which is not installed", remedy="pip install 'tunesmith[deidentify]'"
        ) from error

    class Email(predefined.EmailRecognizer):
        """Presidio's recognizer without the check of the domain, which downloads a list from the internet."""

        def validate_result(self, pattern_text: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return None

    def by_pattern(entity: str, *patterns: tuple[str, float]) -> PatternRecognizer:
        compiled = [Pattern(f"{entity} {number}", text, score) for number, (text, score) in enumerate(patterns)]
        return PatternRecognizer(supported_entity=entity, patterns=compiled)

    day, year = r"\d{1,2}(?:st|nd|rd|th)?", r"(?:19|20)\d\d"
    dates = by_pattern(
        "DATE_IN_WORDS",
        (rf"\b{_MONTH}\.?\s+{day}(?:,?\s+{year})?\b", 0.8),
        (rf"\b{day}\s+(?:of\s+)?{_MONTH}\.?(?:,?\s+{year})?\b", 0.8),
        (r"\b\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d{2})\b", 0.75),
        (rf"\b{year}[./-]\d{{1,2}}[./-]\d{{1,2}}\b", 0.8),
    )
    numbers = by_pattern(
        "RECORD_NUMBER",
        (
            r"(?<=MRN)[\s:#]*[A-Z]{0,3}[-\s]?\d[\d-]{3,}\b",
            0.9,
        ),
        (r"(?<=[Rr]ecord)[\s:#]*[A-Z]{0,3}-?\d[\d-]{3,}\b", 0.9),
        (r"(?<=NHS)\s*(?:no\.?|number)?[\s:#]*\d{3}[\s-]?\d{3}[\s-]?\d{4}\b", 0.95),
        (r"\b[A-Z]{1,3}-?\d{5,}\b", 0.7),
        (r"\b\d{6,}\b", 0.5),
    )
    phones = by_pattern(
        "PHONE_BY_FORM",
        (r"(?<!\d)(?:\+\d{1,3}[\s.-]?)?(?:\(\d{2,4}\)|\d{3})[\s.-]\d{3}[\s.-]\d{4}(?!\d)", 0.85),
        (r"(?<=[Pp]hone)[\s:]*\+?\d[\d\s().-]{6,}\d|(?<=[Tt]el)[.\s:]*\+?\d[\d\s().-]{6,}\d", 0.85),
        (r"(?<!\d)0\d{2,4}[\s-]\d{3,4}[\s-]?\d{3,4}(?!\d)", 0.7),
    )
    return [
        (predefined.DateRecognizer(), "date"),
        (dates, "date"),
        (predefined.PhoneRecognizer(), "phone"),
        (phones, "phone"),
        (Email(), "email"),
        (predefined.UrlRecognizer(), "url"),
        (predefined.IpRecognizer(), "url"),
        (predefined.UsSsnRecognizer(), "number"),
        (predefined.CreditCardRecognizer(), "number"),
        (predefined.IbanRecognizer(), "number"),
        (predefined.NhsRecognizer(), "number"),
        (numbers, "number"),
    ]


@cache
def _pipeline(name: str) -> Any:
    import spacy

    try:
        return spacy.load(name)
    except (OSError, ImportError, ValueError) as error:
        raise InputError(
            f"the spaCy model {name!r} cannot be loaded: {str(error).splitlines()[0]}",
            where="key data.deidentify.spacy_model",
            remedy="install it, or remove the key to detect names by context and name lists only",
        ) from error

"""What in a text tells who someone is: Presidio's recognisers, and some of our own for names, dates and record numbers.

Presidio finds names by a statistical model only, which no package brings. Ours finds them by what stands around (Dr.,
patient, daughter), and by lists of frequent names; a spaCy model of the user's can be asked as well. Rare names that
nothing announces are missed: read the report, and the rows, before you trust it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tunesmith.data.deidentification.name_lists import FAMILY, GIVEN, NO_NAMES
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
    """A piece text[start:stop] that tells who someone is. kind: one of the recipe's. score: how sure it is, 0 to 1."""

    start: int
    stop: int
    kind: str
    score: float


def find(text: str, kinds: frozenset[str], spacy_model: str | None) -> list[Finding]:
    """Findings in the order of the text, none overlapping: of two the surer one stays, then the longer one.

    Raises InputError where Presidio or the spaCy model is not installed.
    """
    candidates = [finding for finding in _all(text, spacy_model) if finding.kind in kinds]
    kept: list[Finding] = []
    for finding in sorted(candidates, key=lambda f: (-f.score, f.start - f.stop, f.start)):
        if all(finding.stop <= other.start or finding.start >= other.stop for other in kept):
            kept.append(finding)
    return sorted(kept, key=lambda finding: finding.start)


def _all(text: str, spacy_model: str | None) -> Iterator[Finding]:
    for recogniser, kind in _recognisers():
        for result in recogniser.analyze(text, recogniser.supported_entities, None):
            start = result.start  # what our patterns look back at may be followed by a colon and spaces
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
        # A given name takes the capitalised word after it along, whether that is in the lists or not.
        if lower in GIVEN and following and re.fullmatch(r"\s+(?:[A-Z]\.\s+)?", text[stop : following.start()]):
            stop = following.end() if following.group().lower() not in NO_NAMES else stop
        yield Finding(word.start(), stop, "person", 0.7 if stop > word.end() else 0.6)


def _without_common_words(text: str, start: int, stop: int) -> tuple[int, int]:
    """What is left of a name when words that are none are taken from its ends."""
    words = [(start + m.start(), start + m.end()) for m in re.finditer(r"\S+", text[start:stop])]
    while words and text[slice(*words[0])].strip(".,:").lower() in NO_NAMES:
        words.pop(0)
    while words and text[slice(*words[-1])].strip(".,:").lower() in NO_NAMES:
        words.pop()
    return (words[0][0], words[-1][1]) if words else (start, start)


@cache
def _recognisers() -> list[tuple[Any, str]]:
    """Presidio's recognisers with the recipe's kind of what each finds. They hold no state: threads may share them."""
    try:
        from presidio_analyzer import Pattern, PatternRecognizer
        from presidio_analyzer import predefined_recognizers as ready
    except ImportError as error:
        raise InputError(
            "data.deidentify needs Presidio, which is not installed", remedy="pip install 'tunesmith[deidentify]'"
        ) from error

    class Email(ready.EmailRecognizer):
        """Without Presidio's check of the domain, which asks a server of the internet for the list of them."""

        def validate_result(self, pattern_text: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return None

    def own(entity: str, *patterns: tuple[str, float]) -> PatternRecognizer:
        made = [Pattern(f"{entity} {number}", text, score) for number, (text, score) in enumerate(patterns)]
        return PatternRecognizer(supported_entity=entity, patterns=made)

    day, year = r"\d{1,2}(?:st|nd|rd|th)?", r"(?:19|20)\d\d"
    dates = own(
        "DATE_IN_WORDS",
        (rf"\b{_MONTH}\.?\s+{day}(?:,?\s+{year})?\b", 0.8),
        (rf"\b{day}\s+(?:of\s+)?{_MONTH}\.?(?:,?\s+{year})?\b", 0.8),
        (r"\b\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d{2})\b", 0.75),
        (rf"\b{year}[./-]\d{{1,2}}[./-]\d{{1,2}}\b", 0.8),
    )
    numbers = own(
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
    phones = own(
        "PHONE_BY_FORM",
        (r"(?<!\d)(?:\+\d{1,3}[\s.-]?)?(?:\(\d{2,4}\)|\d{3})[\s.-]\d{3}[\s.-]\d{4}(?!\d)", 0.85),
        (r"(?<=[Pp]hone)[\s:]*\+?\d[\d\s().-]{6,}\d|(?<=[Tt]el)[.\s:]*\+?\d[\d\s().-]{6,}\d", 0.85),
        (r"(?<!\d)0\d{2,4}[\s-]\d{3,4}[\s-]?\d{3,4}(?!\d)", 0.7),
    )
    return [
        (ready.DateRecognizer(), "date"),
        (dates, "date"),
        (ready.PhoneRecognizer(), "phone"),
        (phones, "phone"),
        (Email(), "email"),
        (ready.UrlRecognizer(), "url"),
        (ready.IpRecognizer(), "url"),
        (ready.UsSsnRecognizer(), "number"),
        (ready.CreditCardRecognizer(), "number"),
        (ready.IbanRecognizer(), "number"),
        (ready.NhsRecognizer(), "number"),
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
            remedy="install it, or leave the key out: names are then found by context and by lists",
        ) from error

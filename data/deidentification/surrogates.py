"""Surrogates for identifying text: same form, same surrogate for the same original, and not derived from the original.

A row's surrogates are drawn from a generator that is seeded with the row's text without the originals. So they are the
same in every run and batch, and the originals cannot be recovered from them. Dates become random dates: the interval
between two dates is lost.
"""

import random
import re
from hashlib import blake2b

from tunesmith.data.deidentification.name_lists import FAMILY, SURROGATE_FAMILY, SURROGATE_GIVEN

_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_WORDS = re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿ'’\-]+")


def words_of(name: str) -> list[str]:
    """Return the words of a name, without punctuation."""
    return _WORDS.findall(name)


def _shares_number(surrogate: str, original: str) -> bool:
    """Whether both contain the same run of four or more digits, such as a year or a part of a phone number."""
    return bool(set(re.findall(r"\d{4,}", surrogate)) & set(re.findall(r"\d{4,}", original)))


class Surrogates:
    """Surrogates of one row. skeleton: the row's text with every finding replaced by its kind."""

    def __init__(self, skeleton: str, seed: int):
        digest = blake2b(f"{seed}\x1f{skeleton}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._random = random.Random(int.from_bytes(digest, "little"))
        self._given, self._family = list(SURROGATE_GIVEN), list(SURROGATE_FAMILY)
        self._random.shuffle(self._given)
        self._random.shuffle(self._family)
        self._known: dict[tuple[str, str], str] = {}
        self.name_words: dict[str, str] = {}
        """Surrogates of the words of all names so far, by lower-case word, since parts of a name also occur alone."""

    def of(self, kind: str, original: str) -> str:
        """Return the surrogate of an original. Case and spacing are ignored, as are the separators of numbers."""
        if kind in ("phone", "number"):
            return self._digits_of(kind, original)
        key = (kind, " ".join(original.lower().split()))
        if key not in self._known:
            self._known[key] = self._person(original) if kind == "person" else self._drawn(kind, original)
        return self._known[key]

    def _digits_of(self, kind: str, original: str) -> str:
        plain = "".join(c for c in original if c.isalnum())
        if (kind, plain) not in self._known:
            self._known[kind, plain] = self._drawn(kind, plain)
        letters = iter(self._known[kind, plain])
        return "".join(next(letters, "0") if c.isalnum() else c for c in original)

    def _drawn(self, kind: str, original: str) -> str:
        draw = {"email": self._email, "url": self._url, "date": self._date}.get(kind, self._digits)
        for _ in range(100):
            surrogate = draw(original)
            if surrogate != original and not _shares_number(surrogate, original):
                return surrogate
        return "".join("X" if c.isalnum() else c for c in original)  # no valid surrogate drawn

    def _person(self, name: str) -> str:
        words = _WORDS.findall(name)
        last = words[-1] if words else ""
        alone_family = len(words) == 1 and last.lower() in FAMILY

        def replaced(match: re.Match[str]) -> str:
            word = match.group()
            is_family = word == last and (len(words) > 1 or alone_family)
            return self._name_word(word, is_family)

        return _WORDS.sub(replaced, name)

    def _name_word(self, word: str, is_family: bool) -> str:
        lower = word.lower()
        if len(word) == 1:  # an initial: that of a known name's surrogate, if one matches
            known = next((surrogate for name, surrogate in self.name_words.items() if name.startswith(lower)), None)
            return known[0] if known else self._random.choice("ABCDEFGHIJKLMNOPRSTVW")
        if lower not in self.name_words:
            pool = self._family if is_family else self._given
            self.name_words[lower] = pool.pop() if pool else f"Person{len(self.name_words)}"
        surrogate = self.name_words[lower]
        return surrogate.upper() if word.isupper() else surrogate

    def _date(self, original: str) -> str:
        """Draw a date in the same form. Day and month are both below 13, so that either order is valid."""
        day, month, year = self._random.randint(1, 12), self._random.randint(1, 12), self._random.randint(1960, 2019)
        lower = original.lower()
        if any(name[:3] in lower for name in _MONTHS):
            return self._date_in_words(original, day, month, year)
        if re.match(r"\d{4}", original):
            numbers = iter((f"{year}", f"{month:02d}", f"{day:02d}"))
            return re.sub(r"\d+", lambda _: next(numbers, f"{day:02d}"), original)
        parts = iter((f"{month:02d}", f"{day:02d}", f"{year}"))

        def part(match: re.Match[str]) -> str:
            digits = next(parts, f"{day:02d}")
            return digits[-2:] if len(match.group()) <= 2 else digits

        return re.sub(r"\d+", part, original)

    def _date_in_words(self, original: str, day: int, month: int, year: int) -> str:
        def word(match: re.Match[str]) -> str:
            word = match.group()
            if not any(name.startswith(word.lower()[:3]) for name in _MONTHS) or len(word) < 3:
                return word if word.lower() == "of" else "th" if word.lower() in ("st", "nd", "rd", "th") else word
            full = next(name for name in _MONTHS if name.startswith(word.lower()[:3]))
            name = _MONTHS[month - 1] if word.lower() == full else _MONTHS[month - 1][:3]
            return name.upper() if word.isupper() else name.capitalize()

        changed = re.sub(r"[A-Za-z]+", word, original)
        return re.sub(r"\d+", lambda m: f"{year}" if len(m.group()) == 4 else f"{day + 3}", changed)

    def _digits(self, original: str) -> str:
        def other(match: re.Match[str]) -> str:
            return str(self._random.randint(1, 9))

        letters = re.sub(r"(?<![A-Za-z])[A-Z]{1,3}(?=-?\d)", lambda m: self._letters(len(m.group())), original)
        return re.sub(r"\d", other, letters)

    def _letters(self, count: int) -> str:
        return "".join(self._random.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(count))

    def _email(self, _original: str) -> str:
        return f"person{self._random.randint(100, 999)}@example.org"

    def _url(self, original: str) -> str:
        if re.fullmatch(r"[\d.]+", original):
            return f"192.0.2.{self._random.randint(1, 254)}"
        return f"example.org/{self._random.randint(100, 999)}"

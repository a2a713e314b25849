"""Texts on which two tokenizers are compared: every kind of character that a pre-tokenizer treats in its own way."""

import random
import unicodedata
from collections.abc import Sequence

_PIECES = (
    *("the", "licence", " Straße", "naïve", "élève", "I'm", "they'll", "we've", "'d", "DON'T", "it’s", "o'clock"),
    *("0", "7", "42", "1234", "3.14159", "1,234,567", "2024-02-29", "0x1F", "½", "²", "٣٤", "१२३"),
    *(" ", "  ", "    ", "\t", "\n", "\n\n", " \n", "\r\n", "\t\t", "\u00a0", "\u3000", " \n \n"),
    *(".", "...", "!?", "--", "—", "(", ")]", "}", '"', "'", "`", "```", "#", "$", "€", "%", "&&", "||", "==", "->"),
    *("://", "/usr/bin", "C:\\temp", "a_b", "__init__", "@name", "<b>", "</p>", "x=1;", "def f(x):\n    return x\n"),
    *("日本語", "中文字", "한국어", "ภาษาไทย", "العربية", "עברית", "हिन्दी", "Ελληνικά", "Русский", "кот", "Ünï"),
    *("🙂", "🚀", "👩‍💻", "🇩🇪", "❤️", "→", "≤", "∑", "√2", "™", "ﬁ", "Ⅷ", "e\u0301", "ǆ", "İ", "ß"),
    *("Hello", " world", "CamelCase", "UPPER", "mixedCASE9", "a1b2", "user@example.org", "don", "supercalifragilistic"),
)


def comparison_strings(count: int, added: Sequence[str], texts: Sequence[str], *, composed: bool) -> list[str]:
    """Return so many different strings, always the same.

    added: the added tokens of the tokenizer; some strings have them. texts: real ones, of which parts are used.
    composed: the tokenizer composes characters (NFC), which llama.cpp does not: only composed strings are compared.
    """
    chosen, seen, rng = [], {""}, random.Random(0)
    fixed = [*_PIECES, *added, *(f"{token}{word}" for token in added[:8] for word in ("a", " a", "\n", "12"))]
    while len(chosen) < count:
        if fixed:
            text = fixed.pop(0)
        elif texts and rng.random() < 0.3:
            text = _part(rng, rng.choice(texts))
        else:
            pieces = [rng.choice(_PIECES) for _ in range(rng.randint(2, 9))]
            if added and rng.random() < 0.2:
                pieces.insert(rng.randrange(len(pieces)), rng.choice(added))
            text = rng.choice(("", " ")).join(pieces)
        text = unicodedata.normalize("NFC", text) if composed else text
        if text not in seen:
            seen.add(text)
            chosen.append(text)
    return chosen


def _part(rng: random.Random, text: str) -> str:
    start = rng.randrange(max(1, len(text) - 20))
    return text[start : start + rng.randint(5, 120)]

"""Single fields of a row: text that must not be empty, and hints for misspelled keys."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from tunesmith.data.refusal import Refusal, keys_of
from tunesmith.data.rows.messages import read_text

FORM_KEYS = ("messages", "conversations", "prompt", "instruction", "text")
"""Keys that identify the format of a row."""
QUESTION_KEYS = ("question", "query", "problem", "input", "source")
ANSWER_KEYS = ("answer", "response", "output", "target", "solution", "completion")
"""Names of questions and answers in public data sets, for hints."""


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known word closest to a misspelled one; None if none is close."""
    matches = get_close_matches(word.lower(), list(known), 1, cutoff)
    return matches[0] if matches else None


def filled(value: Mapping[str, object], key: str) -> str:
    """Return the text of a key. Raises Refusal if it is missing, not text or empty."""
    require_key(value, key)
    return not_empty(value[key], key)


def require_key(value: Mapping[str, object], key: str) -> None:
    """Raise Refusal with a hint if a key is missing."""
    if value.get(key) is not None:
        return
    close = nearest(key, [name for name in value if name not in FORM_KEYS])
    hint = f'; did you write it as "{close}"?' if close else ""
    other = next((name for name in ANSWER_KEYS if value.get(name) is not None), None) if key in ANSWER_KEYS else None
    remedy = f'add "{key}" to the row'
    if other:
        remedy = f'rename "{other}" to "{key}", or set data.columns: {{{key}: {other}}}'
    raise Refusal("missing_key", f'"{key}" is missing{hint}', f"{remedy}; {keys_of(value)}")


def not_empty(value: Any, where: str) -> str:
    """Return text that is not empty. Raises Refusal. where: its place, for the message."""
    text = read_text(value, where)
    if not text.strip():
        raise Refusal("empty", f"{where} is empty", "fill it in, or remove the row")
    return text


def mapping_hint(value: Mapping[str, object]) -> str | None:
    """Suggest `data.columns` for a row of a question and an answer with other names; None for other rows."""
    question = next((name for name in QUESTION_KEYS if isinstance(value.get(name), str)), None)
    answer = next((name for name in ANSWER_KEYS if isinstance(value.get(name), str) and name != question), None)
    return question and answer and f"set data.columns: {{prompt: {question}, completion: {answer}}}"

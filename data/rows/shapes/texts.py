"""Rows with a text to classify, or a pair of texts.

    {"text"}, {"text", "text_pair"}
    {"sentence1", "sentence2"}, {"premise", "hypothesis"}

Other names: classification.text_column, or data.columns (`text` and `text_pair`).
"""

from collections.abc import Mapping
from typing import Any

from tunesmith.data.refusal import Refusal, keys_of
from tunesmith.data.rows.messages import read_text

PAIR_KEY = "text_pair"
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"))


def texts_of(value: Mapping[str, Any], column: str) -> tuple[str, str | None]:
    """Return the text of a row and the second text of a pair, None if it has none. column: key of the text. Raises
    Refusal."""
    if value.get(column) is not None:
        second = value.get(PAIR_KEY) if column != PAIR_KEY else None
        return _filled(value, column), None if second is None else _filled(value, PAIR_KEY)
    for first, second in PAIRS:
        if value.get(first) is not None and value.get(second) is not None:
            return _filled(value, first), _filled(value, second)
    pairs = " or ".join(f'"{first}" and "{second}"' for first, second in PAIRS)
    remedy = f"set classification.text_column to the text's key, or write {pairs}; {keys_of(value)}"
    raise Refusal("missing_key", f'"{column}" is missing', remedy)


def _filled(value: Mapping[str, Any], key: str) -> str:
    text = read_text(value[key], key)
    if not text.strip():
        raise Refusal("empty", f'"{key}" is empty', "fill it in, or remove the row")
    return text

"""Encodings of the tokenizers library: parts of a text, and truncation."""

import json

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend


def continuing(backend: Backend, text: str) -> Encoding | None:
    """Tokenize a text as it continues another one; None if it cannot be separated from a text before it."""
    for before in ("\n", "x", "-"):
        first = backend.encode(before, add_special_tokens=False).ids
        both = backend.encode(before + text, add_special_tokens=False)
        if first and both.ids[: len(first)] == first:
            both.truncate(len(both.ids) - len(first), direction="left")
            return without_overflow(both)
    return None


def without_overflow(encoding: Encoding) -> Encoding:
    """Return a truncated encoding without the part that was cut off, which tokenizers keeps: merging and pairing
    compute every combination of such parts."""
    state = json.loads(encoding.__getstate__())
    plain = Encoding()
    plain.__setstate__(json.dumps({**state, "overflowing": []}).encode("utf-8"))
    return plain

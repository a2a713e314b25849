"""A row in progress: its text, and the token ranges of its trained spans."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import Encoding

from tunesmith.data.outcomes import Ranges
from tunesmith.data.tokenization.pretoken_cache import PretokenCache
from tunesmith.data.tokenization.rendering_check import Omission
from tunesmith.data.tokenization.tokenizer import Tokenizer, parts_of


@dataclass(slots=True)
class Job:
    """A row in progress: its text, the spans where it may be split (the assistant turns), and which of those are
    supervised. opening: number of characters shared with many rows. cut: always tokenize the turns separately.
    literal: spans of special tokens to encode as text. num_special: special tokens that users and tools wrote.
    omissions: what the chat template does not show of the row. inserted: what it inserts into supervised turns."""

    key: bytes
    text: str
    spans: Sequence[tuple[int, int]]
    is_supervised: Sequence[bool]
    masked: bool = False
    opening: int = 0
    cut: bool = False
    literal: Sequence[tuple[int, int]] = ()
    num_special: int = 0
    omissions: Sequence[Omission] = ()
    inserted: Sequence[str] = ()
    tokens: list[int] = field(default_factory=list)
    supervised: Ranges = field(default_factory=list)


def tokens_of_part(tokenizer: Tokenizer, job: Job, start: int, stop: int) -> list[int]:
    """Tokenize a part of a text with special tokens that are text."""
    first, last = (bisect_left(job.literal, (place, 0)) for place in (start, stop))
    inside = [(a - start, b - start) for a, b in job.literal[first:last]]
    parts = parts_of(job.text[start:stop], inside)
    return tokenizer.encode_parts(parts if start == 0 else [("", False), *parts])


def from_pretokens(pretokens: PretokenCache, job: Job) -> tuple[list[int], Ranges | None] | None:
    """Tokenize with the pre-token cache, with the same result as from an encoding; None if the cache cannot be used."""
    text = job.text[job.opening :] if job.opening else job.text
    if not text.isascii():
        return None
    ids, edges = pretokens.encode(text, [place - job.opening for span in job.spans for place in span])
    if edges is None:
        return ids, None
    return ids, [
        (first, last)
        for first, last, supervised in zip(edges[::2], edges[1::2], job.is_supervised, strict=True)
        if supervised
    ]


def token_ranges(encoding: Encoding, size: int, job: Job, joins_pieces: bool) -> Ranges | None:
    """Return the token ranges of the trained spans; None if a token crosses the border of a span and the text can be
    split there."""
    ranges = []
    length = len(job.text) - job.opening
    for (start, stop), supervised in zip(job.spans, job.is_supervised, strict=True):
        start, stop = start - job.opening, stop - job.opening
        first = _token_at(encoding, start, length, size) if start else 0
        last = _token_at(encoding, stop, length, size)
        crossed = (
            start > 0 and _begins_before(encoding, first, start),
            last < size and _begins_before(encoding, last, stop),
        )
        if joins_pieces and any(crossed):
            return None
        # If the text cannot be split (the tokenizer adds spaces before pieces), a crossing token is trained; otherwise
        # the first word of every answer might not be.
        if supervised:
            ranges.append((first, last + crossed[1]))
    return ranges


def _begins_before(encoding: Encoding, token: int, place: int) -> bool:
    characters = encoding.token_to_chars(token)
    return characters is not None and characters[0] < place


def _token_at(encoding: Encoding, place: int, length: int, size: int) -> int:
    """Return the first token of the character at `place`, or of the next one that the tokenizer does not drop."""
    for character in range(place, length):
        token = encoding.char_to_token(character)
        if token is not None:
            return token
    return size

"""Text of a growing list of tokens, given out piece by piece. Free of torch."""

from collections.abc import Callable, Sequence
from typing import Protocol


class Vocabulary(Protocol):
    """What is needed of a tokenizer."""

    @property
    def stop_token_ids(self) -> Sequence[int]: ...

    def decode(self, ids: list[int], /) -> str: ...


class TextStream:
    """A character is given out once all of its bytes are there; all pieces together are the text of all tokens.

    Decodes a short window only: the tokens since the last two pieces, so that a tokenizer may join words by what
    stands before them.
    """

    def __init__(self, tokenizer: Vocabulary, on_text: Callable[[str], None] | None):
        self.tokenizer, self.on_text = tokenizer, on_text
        self.tokens: list[int] = []
        self._start = self._given = 0
        self._length = 0

    def add(self, token: int) -> None:
        self.tokens.append(token)
        if self.on_text is None:
            return
        known = self.tokenizer.decode(self.tokens[self._start : self._given])
        text = self.tokenizer.decode(self.tokens[self._start :])
        if len(text) > len(known) and not text.endswith("�"):
            self._give(text[len(known) :])
            self._start, self._given = self._given, len(self.tokens)

    def finish(self) -> str:
        """The whole text; what is left of it is given out."""
        text = self.tokenizer.decode(self.tokens)
        if self.on_text is not None and len(text) > self._length:
            self._give(text[self._length :])
        return text

    def _give(self, piece: str) -> None:
        self._length += len(piece)
        if self.on_text is not None:
            self.on_text(piece)

"""Incremental decoding of tokens. Does not import torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol


class Vocabulary(Protocol):
    """The part of a tokenizer that decoding needs."""

    @property
    def stop_token_ids(self) -> Sequence[int]: ...

    def decode(self, ids: list[int], /) -> str: ...


class TextStream:
    """Outputs a character once all of its bytes are present; the pieces add up to the text of all tokens.

    Decodes only a short window, the tokens since the last two pieces: a token's text may depend on the one before it.
    shown: text of special tokens that decoding leaves out and that are output here.
    """

    def __init__(
        self, tokenizer: Vocabulary, on_text: Callable[[str], None] | None, shown: Mapping[int, str] | None = None
    ):
        self.tokenizer, self.on_text, self.shown = tokenizer, on_text, shown or {}
        self.tokens: list[int] = []
        self._start = self._decoded = 0
        self._length = 0

    def add(self, token: int) -> None:
        self.tokens.append(token)
        if self.on_text is None:
            return
        known = self._decode(self.tokens[self._start : self._decoded])
        text = self._decode(self.tokens[self._start :])
        if len(text) > len(known) and not text.endswith("�"):
            self._emit(text[len(known) :])
            self._start, self._decoded = self._decoded, len(self.tokens)

    def finish(self) -> str:
        """Output the rest of the text. Returns the whole text."""
        text = self._decode(self.tokens)
        if self.on_text is not None and len(text) > self._length:
            self._emit(text[self._length :])
        return text

    def _decode(self, tokens: list[int]) -> str:
        if not self.shown or self.shown.keys().isdisjoint(tokens):
            return self.tokenizer.decode(tokens)
        texts, run = [], []
        for token in tokens:
            if token in self.shown:
                texts += [self.tokenizer.decode(run) if run else "", self.shown[token]]
                run = []
            else:
                run.append(token)
        return "".join([*texts, self.tokenizer.decode(run) if run else ""])

    def _emit(self, piece: str) -> None:
        self._length += len(piece)
        if self.on_text is not None:
            self.on_text(piece)

"""Thinking in generated text: streamed text is split into thinking and the rest of the answer."""

from dataclasses import dataclass

from tunesmith.inference.stop import overlap


@dataclass(frozen=True)
class Thinking:
    """A piece of the model's thinking, without the texts around it."""

    text: str


@dataclass(frozen=True)
class ThinkingMarks:
    """The texts before and after the thinking in an answer, without white space at their ends."""

    opening: str
    closing: str


class ThinkingReader:
    """Splits streamed text into thinking at its beginning and the rest. White space next to the marks is dropped.

    is_open: whether the prompt ends with the opening text. If the closing text never comes, all is thinking.
    """

    def __init__(self, marks: ThinkingMarks, *, is_open: bool):
        self.marks = marks
        self.is_thinking = is_open
        self._is_undecided = not is_open
        self._held = ""
        self._is_first = True
        """Whether nothing of the present part has been output yet."""

    def add(self, text: str) -> list[str | Thinking]:
        """Thinking and other text that are final, in order."""
        self._held += text
        parts: list[str | Thinking] = []
        if self._is_undecided:
            begun = self._held.lstrip()
            if len(begun) < len(self.marks.opening) and self.marks.opening.startswith(begun):
                return parts
            self._is_undecided = False
            if begun.startswith(self.marks.opening):
                self._held, self.is_thinking = begun[len(self.marks.opening) :], True
            else:
                self._is_first = False  # an answer without thinking, white space included
        if self.is_thinking:
            thought, mark, rest = self._held.partition(self.marks.closing)
            if not mark:
                ready = len(self._held) - overlap(self._held, self.marks.closing)
                ready = len(self._held[:ready].rstrip())  # white space before the closing text is dropped
                self._think(parts, self._held[:ready])
                self._held = self._held[ready:]
                return parts
            self._think(parts, thought.rstrip())
            self._held, self.is_thinking, self._is_first = rest, False, True
        answer = self._held.lstrip() if self._is_first else self._held
        self._held = ""
        if answer:
            parts.append(answer)
            self._is_first = False
        return parts

    def finish(self) -> list[str | Thinking]:
        """The rest, at the end of the stream."""
        held, self._held = self._held, ""
        if self.is_thinking:
            parts: list[str | Thinking] = []
            self._think(parts, held.rstrip())
            return parts
        return [held] if held else []

    def _think(self, parts: list[str | Thinking], text: str) -> None:
        text = text.lstrip() if self._is_first else text
        if text:
            parts.append(Thinking(text))
            self._is_first = False

"""Splits streamed text into content and tool calls."""

from collections.abc import Sequence

from tunesmith.inference.stop import overlap
from tunesmith.inference.tool_calls.call import Format, Read, Schemas, ToolCall
from tunesmith.inference.tool_calls.hermes import Hermes


class ToolCallReader:
    """Splits streamed text into content and calls. White space around calls is dropped; a malformed call stays content,
    unchanged. formats: that the calls may have. schemas: of the tools of the request."""

    def __init__(self, formats: Sequence[Format] = (Hermes(),), schemas: Schemas | None = None) -> None:
        self.num_calls = 0
        self.formats, self.schemas = formats, schemas or {}
        self._held = ""
        self._inside = False
        self._has_content = False
        """Whether content was output since the last call."""

    def add(self, text: str) -> list[str | ToolCall]:
        """Content and calls that are final, in order."""
        self._held += text
        return self._parts(ended=False)

    def finish(self) -> list[str | ToolCall]:
        """The rest, at the end of the stream. A call may lack its closing tag: some models end the response there."""
        parts = self._parts(ended=True)
        held, self._held = self._held, ""
        if held and (held.strip() or self._has_content or not self.num_calls):
            parts.append(held)
        return parts

    def _parts(self, ended: bool) -> list[str | ToolCall]:
        parts: list[str | ToolCall] = []
        while True:
            if not self._inside:
                place = self._opening()
                if place < 0:
                    break
                self._output(parts, place)
                self._inside = True
            read = self._read(ended)
            if read is None:
                break
            self._inside = False
            if read.calls:
                parts += read.calls
                self.num_calls += len(read.calls)
                self._held, self._has_content = self._held[read.length :], False
            else:
                parts.append(self._held[: read.length])
                self._held, self._has_content = self._held[read.length :], True
        if not self._inside:
            held = 0 if ended else max(overlap(self._held, opener) for f in self.formats for opener in f.openers)
            self._output(parts, len(self._held) - held)
        return parts

    def _opening(self) -> int:
        """The position of the first opener in the text held; -1 if there is none."""
        places = [place for f in self.formats for opener in f.openers if (place := self._held.find(opener)) >= 0]
        if not self._has_content:
            rest = self._held.lstrip()
            if any(rest.startswith(opener) for f in self.formats for opener in f.first_openers):
                places.append(len(self._held) - len(rest))
        return min(places, default=-1)

    def _output(self, parts: list[str | ToolCall], length: int) -> None:
        """Output the first characters held as content, unless they are white space next to a call."""
        text = self._held[:length]
        if text and (self._has_content or text.strip()):
            parts.append(text)
            self._held, self._has_content = self._held[length:], True
        elif self._opening() == length:
            self._held = self._held[length:]

    def _read(self, ended: bool) -> Read | None:
        """The calls at the start of the text held, in the first format that finds some; None if more text may show
        them."""
        openers = [(f, (*f.openers, *f.first_openers)) for f in self.formats]
        formats = [f for f, texts in openers if any(self._held.startswith(text) for text in texts)]
        results = [f.read(self._held, self.schemas, ended=ended) for f in formats]
        read = next((result for result in results if result is not None and result.calls), None)
        if read is not None or None in results:
            return read
        return min((result for result in results if result is not None), key=lambda result: result.length)

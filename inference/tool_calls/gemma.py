"""Tool calls of Gemma 4, `<|tool_call>call:weather{city:<|"|>Kyiv<|"|>,days:2}<tool_call|>`, and of FunctionGemma, with
`<start_function_call>`, `<end_function_call>` and `<escape>`. Keys and numbers are bare, texts are between quotes."""

import re
from typing import Any

from tunesmith.inference.tool_calls.call import Read, Schemas, make_call, parsed_json

_NAME = re.compile(r"\s*call:\s*([^\s{]+)\s*(?=\{)")
_MAX_DEPTH = 64


class Gemma:
    """open, close: texts around a call. quote: the text before and after a string."""

    first_openers = ()

    def __init__(self, name: str, opening: str, closing: str, quote: str):
        self.name, self.openers, self.markers = name, (opening,), (opening, closing, quote)
        self.opening, self.closing, self.quote = opening, closing, quote

    def read(self, text: str, schemas: Schemas, *, ended: bool) -> Read | None:
        body = text[len(self.opening) :]
        place = self._end(body)
        if place < 0 and not ended:
            return None
        inner = body if place < 0 else body[:place]
        length = len(text) if place < 0 else len(self.opening) + place + len(self.closing)
        match = _NAME.match(inner)
        if match is None:
            return Read((), length)
        try:
            values = _Values(inner, self.quote)
            arguments, end = values.read(match.end(), 0)
        except ValueError:
            return Read((), length)
        call = make_call(match[1], arguments) if not inner[end:].strip() else None
        return Read((call,) if call else (), length)

    def _end(self, body: str) -> int:
        """The position of the closing text that is not inside of a string; -1 if there is none."""
        place = body.find(self.closing)
        while place >= 0 and body.count(self.quote, 0, place) % 2:
            place = body.find(self.closing, place + 1)
        return place


class _Values:
    """Reads values of a text. Each method returns a value and its end, or raises ValueError."""

    def __init__(self, text: str, quote: str):
        self.text, self.quote = text, quote

    def read(self, place: int, depth: int) -> tuple[Any, int]:
        place = self._skip(place)
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if self.text.startswith(self.quote, place):
            start = place + len(self.quote)
            end = self.text.index(self.quote, start)
            return self.text[start:end], end + len(self.quote)
        if self.text.startswith("{", place):
            return self._items(place + 1, "}", depth)
        if self.text.startswith("[", place):
            return self._items(place + 1, "]", depth)
        end = min((at for c in ",}]" if (at := self.text.find(c, place)) >= 0), default=len(self.text))
        word = self.text[place:end].strip()
        if not word:
            raise ValueError("no value")
        value = parsed_json(word)
        return (word if value is None and word != "null" else value), end

    def _items(self, place: int, closing: str, depth: int) -> tuple[Any, int]:
        pairs: dict[str, Any] = {}
        items: list[Any] = []
        place = self._skip(place)
        while not self.text.startswith(closing, place):
            if closing == "}":
                key, place = self._key(place)
                pairs[key], place = self.read(place, depth + 1)
            else:
                value, place = self.read(place, depth + 1)
                items.append(value)
            place = self._skip(place)
            if self.text.startswith(",", place):
                place = self._skip(place + 1)
            elif not self.text.startswith(closing, place):
                raise ValueError("no comma")
        return (pairs if closing == "}" else items), place + 1

    def _key(self, place: int) -> tuple[str, int]:
        if self.text.startswith(self.quote, place):
            key, place = self.read(place, 0)
            return key, self.text.index(":", place) + 1
        end = self.text.index(":", place)
        return self.text[place:end].strip(), end + 1

    def _skip(self, place: int) -> int:
        while place < len(self.text) and self.text[place].isspace():
            place += 1
        return place

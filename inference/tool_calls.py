"""Parser for tool calls in generated text, in the format of Hermes and Qwen: `<tool_call>{"name": ..., "arguments":
{...}}</tool_call>`. Accepts streamed text."""

import json
from dataclasses import dataclass

from tunesmith.inference.stop import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """arguments: JSON text, as in the API."""

    name: str
    arguments: str


class ToolCallReader:
    """Splits streamed text into content and calls. White space around calls is dropped; a malformed call stays content,
    unchanged."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""
        self._inside = False
        self._has_content = False
        """Whether content was output since the last call."""

    def add(self, text: str) -> list[str | ToolCall]:
        """Content and calls that are final, in order."""
        self._held += text
        parts: list[str | ToolCall] = []
        while True:
            before, marker, after = self._held.partition(CLOSE if self._inside else OPEN)
            if not marker:
                break
            self._held = after
            if self._inside:
                parts.append(self._read(before))
            elif before and (self._has_content or before.strip()):
                parts.append(before)
            self._inside, self._has_content = not self._inside, False
        if not self._inside:
            ready = self._held[: len(self._held) - overlap(self._held, OPEN)]
            if ready and (self._has_content or ready.strip()):
                parts.append(ready)
                self._held, self._has_content = self._held[len(ready) :], True
        return parts

    def finish(self) -> list[str | ToolCall]:
        """The rest, at the end of the stream. A call may lack its closing tag: some models end the response there."""
        held, self._held = self._held, ""
        if self._inside:
            self._inside = False
            return [self._read(held, closed=False)]
        return [held] if held and (held.strip() or self._has_content or not self.num_calls) else []

    def _read(self, inner: str, closed: bool = True) -> str | ToolCall:
        try:
            call = json.loads(inner)
            name, arguments = call["name"], call.get("arguments", {})
            if not isinstance(name, str) or not isinstance(arguments, (dict, str)):
                raise ValueError("not a call")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"{OPEN}{inner}{CLOSE if closed else ''}"
        self.num_calls += 1
        return ToolCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))

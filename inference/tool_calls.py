"""Tool calls in an answer's text, in the form of Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}
</tool_call>`. The text may arrive in pieces."""

import json
from dataclasses import dataclass

from tunesmith.inference.stop import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """arguments: JSON text, as the API gives it."""

    name: str
    arguments: str


class ToolCallReader:
    """Divides a growing text into content and calls. White space alone around calls is no content; what looks like a
    call and is none stays content, as it stands."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""
        self._inside = False
        self._begun = False
        """Whether something of the content since the last call was given out."""

    def add(self, text: str) -> list[str | ToolCall]:
        """What is final now, in order."""
        self._held += text
        found: list[str | ToolCall] = []
        while True:
            before, met, after = self._held.partition(CLOSE if self._inside else OPEN)
            if not met:
                break
            self._held = after
            if self._inside:
                found.append(self._read(before))
            elif before and (self._begun or before.strip()):
                found.append(before)
            self._inside, self._begun = not self._inside, False
        if not self._inside:
            ready = self._held[: len(self._held) - overlap(self._held, OPEN)]
            if ready and (self._begun or ready.strip()):
                found.append(ready)
                self._held, self._begun = self._held[len(ready) :], True
        return found

    def finish(self) -> list[str | ToolCall]:
        """What is left, where no more text comes. A call may lack its closing mark: some models end their answer
        there."""
        held, self._held = self._held, ""
        if self._inside:
            self._inside = False
            return [self._read(held, closed=False)]
        return [held] if held and (held.strip() or self._begun or not self.num_calls) else []

    def _read(self, inner: str, closed: bool = True) -> str | ToolCall:
        try:
            call = json.loads(inner)
            name, arguments = call["name"], call.get("arguments", {})
            if not isinstance(name, str) or not isinstance(arguments, (dict, str)):
                raise ValueError("no call")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"{OPEN}{inner}{CLOSE if closed else ''}"
        self.num_calls += 1
        return ToolCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))

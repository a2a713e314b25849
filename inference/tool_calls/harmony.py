"""Answers of gpt-oss in the harmony format: messages with a channel, of which one may call a tool.

    <|channel|>analysis<|message|>thinking<|end|><|start|>assistant<|channel|>commentary to=functions.weather
    <|constrain|>json<|message|>{"city": "Kyiv"}<|call|>
    <|channel|>final<|message|>text<|return|>

The recipient of a call is before or after the channel. Text outside of this form is content.
"""

import re

from tunesmith.inference.stop import overlap
from tunesmith.inference.thinking import Thinking
from tunesmith.inference.tool_calls.call import ToolCall, make_call, parsed_json

CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
MARKERS = (CHANNEL, MESSAGE, START, "<|constrain|>", *ENDS)
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")
_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
_OPENERS = (CHANNEL, START, "to=", "assistant")
Part = str | Thinking | ToolCall


class HarmonyReader:
    """Splits streamed text into thinking, content and tool calls. calls: whether to read tool calls; otherwise they are
    content. A message that calls a tool without valid arguments is content."""

    def __init__(self, *, calls: bool = True):
        self.calls = calls
        self.num_calls = 0
        self.is_thinking = False
        self._held = self._header = ""
        self._in_header = True
        self._body = ""

    def add(self, text: str) -> list[Part]:
        """Thinking, content and calls that are final, in order."""
        self._held += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """The rest, at the end of the stream: the stop token that ends a call is not part of the text."""
        parts: list[Part] = []
        held, self._held = self._held, ""
        if not self._in_header:
            self._output(parts, held)
            self._end_message(parts)
        elif held.strip() and not _may_be_header(held):
            parts.append(held)
        return parts

    def _step(self, parts: list[Part]) -> bool:
        """Process the text held as far as it is final; returns whether the state has changed."""
        if self._in_header:
            header, mark, rest = self._held.partition(MESSAGE)
            if mark:
                self._header, self._held, self._in_header = header, rest, False
            elif self._held.strip() and not _may_be_header(self._held):
                self._header, self._in_header = f"{CHANNEL}final", False
            self.is_thinking = not self._in_header and self._channel() == "analysis"
            return not self._in_header
        places = [(place, end) for end in (*ENDS, START) if (place := self._held.find(end)) >= 0]
        if not places:
            ready = len(self._held) - max(overlap(self._held, end) for end in (*ENDS, START))
            self._output(parts, self._held[:ready])
            self._held = self._held[ready:]
            return False
        place, end = min(places)
        self._output(parts, self._held[:place])
        self._held = self._held[place + (len(end) if end in ENDS else 0) :]
        self._end_message(parts)
        return True

    def _channel(self) -> str:
        match = _NAME.search(self._header)
        return match[1] if match else "final"

    def _recipient(self) -> str | None:
        match = _RECIPIENT.search(self._header)
        return match[1] if match and self.calls else None

    def _output(self, parts: list[Part], text: str) -> None:
        if self._recipient() is not None:
            self._body += text  # until it is known whether it is a call
        elif text:
            parts.append(Thinking(text) if self.is_thinking else text)

    def _end_message(self, parts: list[Part]) -> None:
        name, body = self._recipient(), self._body
        if name is not None:
            call = make_call(name, body.strip()) if isinstance(parsed_json(body), dict) else None
            self.num_calls += call is not None
            parts.append(call or f"{self._header}{MESSAGE}{body}")
        self._header, self._body, self._in_header, self.is_thinking = "", "", True, False


def _may_be_header(text: str) -> bool:
    """Whether a text without `<|message|>` may be the beginning of a header."""
    stripped = text.lstrip()
    return any(stripped.startswith(opener) or opener.startswith(stripped) for opener in _OPENERS)

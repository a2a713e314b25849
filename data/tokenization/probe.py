"""A copy of a conversation in which every value is replaced by a unique one of the same kind.

If a template renders the copy with all of the unique values, it shows all values of every conversation of this shape.
Not replaced: what has no text of its own (types, booleans, null), identifiers that only link a result to its call, and
tags by which templates find thinking in a content.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.rows.messages import THOUGHT_KEYS

Message = dict[str, Any]

MAX_FIELDS = 1000
"""Limit of replaced values in a conversation; further ones are kept."""
_THOUGHT_TAG = re.compile(
    r"(</?(?:think|thinking|thought|thoughts|reasoning|reflection|seed:think)>|\[/?THINK\]|◁/?think▷)"
)
_RESULT = re.compile(r"\s*<tool_response>.*</tool_response>\s*", re.DOTALL)
_NAMED = ("name", "title", "description", "default", "const", "pattern")
"""Keys of a tool's description whose strings are shown to the model."""


@dataclass(frozen=True, slots=True)
class Field:
    """A replaced value. message: its index, None: part of the row's tools. path: its place within the message or the
    row. kind: for counts. unique: what replaced it, in lower case."""

    message: int | None
    path: str
    kind: str
    unique: str


@dataclass(frozen=True, slots=True)
class Probe:
    messages: list[dict[str, Any]]
    tools: list[Any] | None
    fields: list[Field]

    def key(self) -> str:
        """The shape of the conversation: equal for conversations that a template renders alike."""
        known = [{name: value for name, value in message.items() if name in _SHAPING} for message in self.messages]
        return json.dumps([known, self.tools], default=str)


_SHAPING = frozenset(
    ("role", "content", "weight", "tool_calls", "tool_call_id", "name", "refusal", "audio", *THOUGHT_KEYS)
)


def make_probe(messages: Sequence[Message], tools: list[Any] | None, only: frozenset[int] | None = None) -> Probe:
    """Replace the values of a conversation. only: the numbers of the fields to replace; None: all."""
    maker = _Maker(messages, only)
    probed = [maker.message(number, message) for number, message in enumerate(messages)]
    described = None
    if tools:
        described = [maker.description(None, f"tools[{number}]", tool) for number, tool in enumerate(tools)]
    return Probe(probed, described, maker.fields)


@dataclass
class _Maker:
    """Replaces values in a fixed order, so that a field has the same number in every copy."""

    messages: Sequence[Message]
    only: frozenset[int] | None
    fields: list[Field] = field(default_factory=list)
    ids: dict[str, str] = field(default_factory=dict)

    def message(self, number: int, message: Message) -> dict[str, Any]:
        role, thoughts, probed = message["role"], {}, {}
        for name, value in message.items():
            if value is None:
                continue
            if name == "content":
                probed[name] = self._content(number, role, value)
            elif name in THOUGHT_KEYS:  # the same thoughts under several names are one value
                thought = repr(value)
                if thought not in thoughts:
                    thoughts[thought] = self.any(number, name, value, "thinking")
                probed[name] = thoughts[thought]
            elif name == "tool_calls":
                probed[name] = [self._call(number, f"tool_calls[{place}]", call) for place, call in enumerate(value)]
            elif name == "tool_call_id":
                probed[name] = self._identifier(value)
            elif name in ("refusal", "audio") or (name == "name" and not self._is_called(role, value)):
                probed[name] = self.any(number, name, value, name)
            else:
                probed[name] = value
        return probed

    def any(self, message: int | None, path: str, value: Any, kind: str) -> Any:
        """Replace the keys and values of JSON data."""
        if isinstance(value, str):
            return self._text(message, path, value, kind)
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int | float):
            return self._number(message, path, value, kind)
        if isinstance(value, list):
            return [self.any(message, f"{path}[{place}]", item, kind) for place, item in enumerate(value)]
        if isinstance(value, dict):
            return {
                self._text(message, f"{path}.{name}", name, kind): self.any(message, f"{path}.{name}", item, kind)
                for name, item in value.items()
            }
        return value

    def description(self, message: int | None, path: str, value: Any) -> Any:
        """Replace what a JSON schema or the description of a tool says, not its types."""
        if isinstance(value, list):
            return [self.description(message, f"{path}[{place}]", item) for place, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        properties = value.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        renamed = {name: self._text(message, f"{path}.properties.{name}", name, "tools") for name in sorted(properties)}
        described: dict[str, Any] = {}
        for name, item in sorted(value.items()):
            place = f"{path}.{name}"
            if name == "properties" and renamed:
                described[name] = {
                    renamed[key]: self.description(message, f"{place}.{key}", properties[key]) for key in renamed
                }
            elif name == "required" and isinstance(item, list):
                described[name] = [renamed.get(key, key) if isinstance(key, str) else key for key in item]
            elif (name in _NAMED and isinstance(item, str)) or name in ("enum", "examples"):
                described[name] = self.any(message, place, item, "tools")
            else:
                described[name] = self.description(message, place, item)
        return described

    def _content(self, number: int, role: str, content: Any) -> Any:
        if not isinstance(content, str):
            return content
        if not content.strip():
            return ""
        kind = "content" if role in ("user", "assistant") else f"{role} messages"
        if role != "assistant":
            text = self._text(number, "content", content, kind)
            return f"<tool_response>\n{text}\n</tool_response>" if _RESULT.fullmatch(content) else text
        parts = _THOUGHT_TAG.split(content)
        if len(parts) == 1:
            return self._text(number, "content", content, kind)
        closes = [part.startswith(("</", "[/", "◁/")) for part in parts[1::2]] + [False]
        for place, is_thought in zip(range(0, len(parts), 2), closes, strict=True):
            if parts[place].strip():
                text = self._text(number, "content", parts[place], "thinking" if is_thought else kind)
                parts[place] = f"\n{text}\n"
        return "".join(parts)

    def _call(self, number: int, path: str, call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function", call)
        probed = dict(function)
        if isinstance(function.get("name"), str):
            probed["name"] = self._text(number, f"{path}.name", function["name"], "tool calls")
        if "arguments" in function:
            probed["arguments"] = self.any(number, f"{path}.arguments", function["arguments"], "tool calls")
        probed = {**call, "function": probed} if "function" in call else probed
        return {**probed, "id": self._identifier(call["id"])} if "id" in call else probed

    def _is_called(self, role: str, name: Any) -> bool:
        """Whether the name of a result repeats that of its call."""
        return role == "tool" and any(
            call.get("function", call).get("name") == name
            for message in self.messages
            for call in message.get("tool_calls") or ()
        )

    def _identifier(self, value: Any) -> Any:
        """The same identifier for all conversations of a shape; some templates require a length."""
        if not isinstance(value, str):
            return value
        if value not in self.ids:
            self.ids[value] = str(len(self.ids)).rjust(len(value), "a")
        return self.ids[value]

    def _text(self, message: int | None, path: str, value: str, kind: str) -> str:
        number = len(self.fields)
        if not value.strip() or number >= MAX_FIELDS:
            return value
        unique = f"zq{number}kx"
        self.fields.append(Field(message, path, kind, unique))
        return unique if self.only is None or number in self.only else value

    def _number(self, message: int | None, path: str, value: float, kind: str) -> float:
        number = len(self.fields)
        if number >= MAX_FIELDS:
            return value
        unique = int(f"918273{number:03d}645")
        self.fields.append(Field(message, path, kind, str(unique)))
        if self.only is not None and number not in self.only:
            return value
        return unique + 0.5 if isinstance(value, float) else unique

"""Tool calls in generated text, and the interface of their formats."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class ToolCall:
    """arguments: JSON text, as in the API."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Read:
    """The calls at the start of a text, and how many of its characters they take. calls: empty if they are malformed,
    or if the text is none; it is content then."""

    calls: tuple[ToolCall, ...]
    length: int


Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of the parameters of each tool, by its name; empty if the tools are unknown."""


class Format(Protocol):
    """A format of tool calls."""

    @property
    def name(self) -> str: ...

    @property
    def openers(self) -> Sequence[str]:
        """Texts with which calls begin."""
        ...

    @property
    def first_openers(self) -> Sequence[str]:
        """Texts with which calls begin only where no content precedes them."""
        ...

    @property
    def markers(self) -> Sequence[str]:
        """The texts of the format that may be special tokens."""
        ...

    def read(self, text: str, schemas: Schemas, *, ended: bool) -> Read | None:
        """Read the calls at the start of a text, which begins with an opener; None if they need more text. ended:
        whether there is no more."""
        ...


def make_call(name: Any, arguments: Any) -> ToolCall | None:
    """Return a call with these values, as parsed from JSON; None if they are not those of a call."""
    if not isinstance(name, str) or not name or not isinstance(arguments, dict | str):
        return None
    return ToolCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def json_call(value: Any, key: str = "arguments") -> ToolCall | None:
    """Return the call of a JSON object with its name and, optionally, arguments. key: of the arguments."""
    return make_call(value.get("name"), value.get(key, {})) if isinstance(value, dict) else None


def json_prefix(text: str, start: int) -> tuple[Any, int] | None:
    """Return the JSON value that starts at a position of a text, and its end; None if there is no complete one."""
    start = len(text) - len(text[start:].lstrip())
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None


_DECODER = json.JSONDecoder()


def parsed_json(text: str) -> Any:
    """Return the value of a JSON text; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

"""Tool calls of Qwen3-Coder and Qwen 3.5, whose values are plain text:

    <tool_call>
    <function=weather>
    <parameter=city>
    Kyiv
    </parameter>
    </function>
    </tool_call>

The schema of a parameter decides whether its value is text or JSON.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from tunesmith.inference.tool_calls.call import Read, Schemas, ToolCall, make_call, parsed_json
from tunesmith.inference.tool_calls.hermes import CLOSE, OPEN

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>\s*(.*?)\s*(?:</function>\s*|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>(.*?)(?:</parameter>\s*|(?=<parameter=)|\Z)", re.DOTALL)


class Qwen3Coder:
    name = "qwen3_coder"
    openers = (OPEN, "<function=")
    first_openers = ()
    markers = (OPEN, CLOSE)

    def read(self, text: str, schemas: Schemas, *, ended: bool) -> Read | None:
        tagged = text.startswith(OPEN)
        end = CLOSE if tagged else "</function>"
        place = text.find(end)
        if place < 0 and not ended:
            return None
        length = len(text) if place < 0 else place + len(end)
        inner = text[len(OPEN) if tagged else 0 : place if tagged and place >= 0 else length]
        matches = list(_FUNCTION.finditer(inner))
        if "".join(match[0] for match in matches).strip() != inner.strip():
            return Read((), length)
        calls = [_call(match[1].strip(), match[2], schemas) for match in matches]
        return Read(tuple(call for call in calls if call), length) if all(calls) else Read((), length)


def _call(name: str, body: str, schemas: Schemas) -> ToolCall | None:
    """Return the call of a function with the text of its parameters; None if that has another form."""
    matches = list(_PARAMETER.finditer(body))
    if "".join(match[0] for match in matches).strip() != body.strip():
        return None
    properties = schemas.get(name, {}).get("properties") or {}
    arguments = {match[1].strip(): _value(match[2], properties.get(match[1].strip())) for match in matches}
    return make_call(name, arguments)


def _value(text: str, schema: Any) -> Any:
    """Convert the text of a value. schema: its JSON schema; None: unknown, so it is text."""
    text = text.removeprefix("\n").removesuffix("\n")
    if not isinstance(schema, Mapping) or _takes_text(schema):
        return text
    stripped = text.strip()
    if (value := parsed_json(stripped)) is not None or stripped == "null":
        return value
    try:
        return ast.literal_eval(stripped)  # templates write True and None of Python
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _takes_text(schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return "string" in kinds or (kinds == [None] and all(isinstance(v, str) for v in schema.get("enum", [0])))

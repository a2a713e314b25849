"""Tool calls of DeepSeek V3 and R1 (name and JSON in a code block), and of V3.1 (name, separator, JSON)."""

import re

from tunesmith.inference.tool_calls.call import Read, Schemas, ToolCall, parsed_json

ALL, END_ALL = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
ONE, END_ONE, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
_CALL = re.compile(
    rf"\s*{ONE}(?:function{SEPARATOR}(?P<first>[^\n]+)\n```json\n(?P<block>.*?)\n```"
    rf"|(?P<name>.*?){SEPARATOR}(?P<json>.*?))\s*(?:{END_ONE}|\Z)\s*",
    re.DOTALL,
)


class DeepSeek:
    name = "deepseek_v3"
    openers = (ALL, ONE)
    first_openers = ()
    markers = (ALL, END_ALL, ONE, END_ONE, SEPARATOR)

    def read(self, text: str, schemas: Schemas, *, ended: bool) -> Read | None:
        is_list = text.startswith(ALL)
        end = END_ALL if is_list else END_ONE
        place = text.find(end)
        if place < 0 and not ended:
            return None
        length = len(text) if place < 0 else place + len(end)
        inner = text[len(ALL) if is_list else 0 : place if is_list and place >= 0 else length]
        matches = list(_CALL.finditer(inner))
        calls = [_call(match) for match in matches]
        is_whole = "".join(match[0] for match in matches).strip() == inner.strip()
        return Read(tuple(call for call in calls if call) if is_whole and all(calls) else (), length)


def _call(match: re.Match[str]) -> ToolCall | None:
    name, arguments = match["first"] or match["name"], match["block"] if match["first"] else match["json"]
    valid = bool(name.strip()) and isinstance(parsed_json(arguments), dict)
    return ToolCall(name.strip(), arguments.strip()) if valid else None

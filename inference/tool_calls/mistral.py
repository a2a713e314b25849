"""Tool calls of Mistral: `[TOOL_CALLS] [{"name": ..., "arguments": {...}, "id": ...}]`, and of its later models
`[TOOL_CALLS]name[ARGS]{...}`, with `[CALL_ID]...` before the arguments in some."""

import re

from tunesmith.inference.tool_calls.call import Read, Schemas, json_call, json_prefix, make_call

OPEN, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAME = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*(?=\{)")


class Mistral:
    name = "mistral"
    openers = (OPEN,)
    first_openers = ()
    markers = (OPEN, ARGS, CALL_ID)

    def read(self, text: str, schemas: Schemas, *, ended: bool) -> Read | None:
        incomplete = Read((), len(text)) if ended else None
        body = text[len(OPEN) :].lstrip()
        start = len(text) - len(body)
        if body[:1] in ("[", "{"):
            if (parsed := json_prefix(text, start)) is None:
                return incomplete
            value, end = parsed
            calls = [json_call(item) for item in (value if isinstance(value, list) else [value])]
            return Read(tuple(call for call in calls if call) if all(calls) else (), end)
        match = _NAME.match(text, start)
        if match is None or (parsed := json_prefix(text, match.end())) is None:
            return incomplete
        call = make_call(match[1], parsed[0])
        return Read((call,) if call else (), parsed[1])

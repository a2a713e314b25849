"""Tool calls of Hermes and Qwen 2.5 and 3: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from tunesmith.inference.tool_calls.call import Read, Schemas, json_call, parsed_json

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Hermes:
    name = "hermes"
    openers = (OPEN,)
    first_openers = ()
    markers = (OPEN, CLOSE)

    def read(self, text: str, schemas: Schemas, *, ended: bool) -> Read | None:
        """A call may lack its closing tag at the end: some models end the response there."""
        inner, close, _ = text.removeprefix(OPEN).partition(CLOSE)
        if not close and not ended:
            return None
        call = json_call(parsed_json(inner))
        return Read((call,) if call else (), len(OPEN) + len(inner) + len(close))

"""Tool calls of Llama 3: the answer is `{"name": ..., "parameters": {...}}`, possibly after `<|python_tag|>`, and
several separated by semicolons."""

from tunesmith.inference.tool_calls.call import Read, Schemas, json_call, json_prefix

TAG = "<|python_tag|>"


class Llama3:
    name = "llama3_json"
    openers = (TAG,)
    first_openers = ("{", ";")
    markers = (TAG,)

    def read(self, text: str, schemas: Schemas, *, ended: bool) -> Read | None:
        """Other JSON objects are content, also those that name no tool of the request."""
        start = len(TAG) if text.startswith(TAG) else 0
        rest = text[start:].lstrip("; \t\r\n")
        if not rest:
            return Read((), len(text)) if ended else None
        if not rest.startswith("{"):
            return Read((), len(text) - len(rest))
        parsed = json_prefix(text, len(text) - len(rest))
        if parsed is None:
            return Read((), len(text)) if ended else None
        value, end = parsed
        call = json_call(value, "parameters" if "parameters" in value else "arguments")
        is_call = call is not None and ("parameters" in value or "arguments" in value)
        is_known = call is not None and (start > 0 or not schemas or call.name in schemas)
        return Read((call,) if call and is_call and is_known else (), end)

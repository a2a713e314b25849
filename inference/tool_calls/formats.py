"""The known formats of tool calls, and which one a chat template writes.

The template renders a call with known values, and the format is the one that reads them back. The model's name does not
matter, and a template that was changed is read as it is.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tunesmith.data.tokenization.assistant_spans import TemplateFailure
from tunesmith.data.tokenization.chat_template import ChatTemplate
from tunesmith.inference.tool_calls import harmony
from tunesmith.inference.tool_calls.call import Format, Schemas, ToolCall
from tunesmith.inference.tool_calls.deepseek import DeepSeek
from tunesmith.inference.tool_calls.gemma import Gemma
from tunesmith.inference.tool_calls.hermes import Hermes
from tunesmith.inference.tool_calls.llama3 import Llama3
from tunesmith.inference.tool_calls.mistral import Mistral
from tunesmith.inference.tool_calls.qwen3_coder import Qwen3Coder
from tunesmith.inference.tool_calls.reader import ToolCallReader

HERMES = Hermes()
FORMATS: tuple[Format, ...] = (
    HERMES,
    Qwen3Coder(),
    Mistral(),
    DeepSeek(),
    Gemma("gemma", "<|tool_call>", "<tool_call|>", '<|"|>'),
    Gemma("functiongemma", "<start_function_call>", "<end_function_call>", "<escape>"),
    Llama3(),
)
HARMONY = "harmony"
_NAME, _ARGUMENTS = "zq_lookup", {"zq_key": 'zq "value', "zq_number": 918273}
_PROPERTIES = {"zq_key": {"type": "string"}, "zq_number": {"type": "integer"}}
_PARAMETERS: dict[str, Any] = {"type": "object", "properties": _PROPERTIES, "required": ["zq_key", "zq_number"]}
_TOOL = {"type": "function", "function": {"name": _NAME, "description": "Look it up.", "parameters": _PARAMETERS}}
_CALL = {"id": "callid123", "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}


@lru_cache(maxsize=256)
def format_of(template: ChatTemplate) -> Format | str | None:
    """Return the format in which a template writes tool calls, HARMONY, or None if it is not known or writes none."""
    answer = _rendered_call(template)
    if answer is None:
        return None
    if _is_call(harmony.HarmonyReader(), answer):
        return HARMONY
    schemas = {_NAME: _PARAMETERS}
    return next((known for known in FORMATS if _is_call(ToolCallReader([known], schemas), answer)), None)


def schemas_of(tools: Sequence[Any]) -> Schemas:
    """Return the schemas of the parameters of tools in OpenAI's format, by name."""
    functions = [
        tool["function"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    return {
        function["name"]: function["parameters"] if isinstance(function.get("parameters"), dict) else {}
        for function in functions
        if isinstance(function, dict) and isinstance(function.get("name"), str)
    }


def _rendered_call(template: ChatTemplate) -> str | None:
    """The text of an answer that calls a tool, after its prompt and without the token that ends it."""
    question = {"role": "user", "content": "q"}
    for content in ({"content": ""}, {}):
        call = {"role": "assistant", **content, "tool_calls": [_CALL]}
        try:
            prompt = template.render([question], [_TOOL], add_generation_prompt=True)
            text = template.render([question, call], [_TOOL])
        except TemplateFailure:
            continue
        start = next((n for n, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(prompt))
        answer = text[template.insertions.start(text, (1, start, len(text)), call) :].rstrip()
        ends = [match for match in template.special_pattern.finditer(answer) if match.end() == len(answer)]
        return answer[: ends[0].start()] if ends and not _closes_call(ends[0][0]) else answer
    return None


def _closes_call(token: str) -> bool:
    return any(token in known.markers for known in FORMATS)


def _is_call(reader: ToolCallReader | harmony.HarmonyReader, answer: str) -> bool:
    """Whether a reader finds exactly the known call in an answer."""
    parts = [*reader.add(answer), *reader.finish()]
    calls = [part for part in parts if isinstance(part, ToolCall)]
    if len(calls) != 1 or calls[0].name != _NAME or any(isinstance(part, str) and part.strip() for part in parts):
        return False
    try:
        return json.loads(calls[0].arguments) == _ARGUMENTS
    except ValueError:
        return False

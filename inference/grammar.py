"""Grammars for constrained generation: JSON that follows a schema, or tool calls.

Grammars are in llguidance's variant of Lark (docs/syntax.md of guidance-ai/llguidance) and enforced by
`grammar_matcher.py`. Tool calls have the format of `tool_calls/hermes.py`. Imports neither torch nor llguidance: the
API process builds the grammars.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.inference.tool_calls.hermes import CLOSE, OPEN

MAX_CALLS = 16
"""Maximum number of forced calls in a response: a model that never ends its list would fill the context."""
_SPACE = "( |\\n {0,24})?"
"""White space between JSON tokens: as `json.dumps` writes it, with or without indentation. If more were allowed, an
uncertain model might generate only white space."""

Schema = dict[str, Any]


@dataclass(frozen=True)
class Grammar:
    """lark: source of the grammar. schemas: (request parameter, name in error messages, JSON) of each schema in it."""

    lark: str
    schemas: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. strict: unsupported schema keywords are errors; else they are ignored."""

    name: str
    parameters: Schema
    strict: bool = False


def json_grammar(schema: Schema) -> Grammar:
    """Grammar of a JSON value that follows the schema."""
    text = _options(schema)
    return Grammar(f"start: %json {text}\n", (("response_format", "response_format", text),))


def calls_grammar(tools: Sequence[Tool], *, many: bool) -> Grammar:
    """Grammar of one tool call; many: of one or more."""
    more = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if many else ""
    alternatives = " | ".join(f"call_{number}" for number in range(len(tools)))
    lines = [f"start: call{more}", f"call: {alternatives}"]
    lines += [f'call_{number}: "{OPEN}\\n" {_call(tool)} "\\n{CLOSE}"' for number, tool in enumerate(tools)]
    return Grammar("\n".join(lines) + "\n", _schemas(tools))


def free_grammar(tools: Sequence[Tool], response: Schema | None) -> Grammar:
    """Grammar of text or tool calls, at the model's choice. Calls follow the schemas of their tools. Text is free if
    `response` is None, otherwise JSON that follows this schema."""
    if response is not None:
        whole, calls = json_grammar(response), calls_grammar(tools, many=True)
        grammar = calls.lark.replace(
            "start:", f"start: response | calls\nresponse: %json {_options(response)}\ncalls:", 1
        )
        return Grammar(grammar, whole.schemas + calls.schemas)
    alternatives = " | ".join(f"call_{number}" for number in range(len(tools)))
    lines = ["start: emitted_call* rest", "rest: TEXT", "TEXT: /(.|\\n)*/", f'open[lazy]: TEXT "{OPEN}"']
    lines += [f'emitted_call: open /[ \\n]?/ ({alternatives}) /[ \\n]?/ "{CLOSE}"']
    lines += [f"call_{number}: {_call(tool)}" for number, tool in enumerate(tools)]
    return Grammar("\n".join(lines) + "\n", _schemas(tools))


def _call(tool: Tool) -> str:
    """Grammar of the JSON of a call. References in the schema of the arguments start at its own root."""
    head = f'{{"name": {json.dumps(tool.name)}, "arguments": '
    return f'{json.dumps(head)} %json {_options(tool.parameters, lenient=not tool.strict)} "}}"'


def _schemas(tools: Sequence[Tool]) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        ("tools", f"function '{tool.name}'", _options(tool.parameters, lenient=not tool.strict)) for tool in tools
    )


def _options(schema: Schema, lenient: bool = False) -> str:
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": _SPACE, "lenient": lenient}})

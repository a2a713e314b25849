"""What an answer must look like, as a grammar: JSON after a schema, or calls of tools.

The grammar is Lark as llguidance reads it (docs/syntax.md of guidance-ai/llguidance); what keeps a model to it is
`grammar_matcher.py`. Calls are written as `tool_calls.py` reads them. Free of torch and llguidance: the API process
builds it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.inference.tool_calls import CLOSE, OPEN

MOST_CALLS = 16
"""Calls of one answer that may be forced: a model that never ends its list would go on to the context's end."""
_SPACE = "( |\\n {0,24})?"
"""White space between the words of JSON: as `json.dumps` writes it, indented or not. More of it, and a model that is
not sure of itself writes nothing else."""

Schema = dict[str, Any]


@dataclass(frozen=True)
class Grammar:
    """lark: its text. schemas: (parameter of the request, what it is called there, its JSON) of each schema in it, by
    which one that cannot be kept is named."""

    lark: str
    schemas: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Tool:
    """A function that may be called. strict: its arguments follow `parameters` to the letter, and a keyword that cannot
    be kept is an error; otherwise such keywords are left out."""

    name: str
    parameters: Schema
    strict: bool = False


def json_grammar(schema: Schema) -> Grammar:
    """An answer that is JSON after the schema, and nothing else."""
    text = _options(schema)
    return Grammar(f"start: %json {text}\n", (("response_format", "response_format", text),))


def calls_grammar(tools: Sequence[Tool], *, many: bool) -> Grammar:
    """An answer that is one call of one of the tools; many: or more of them."""
    more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if many else ""
    kinds = " | ".join(f"call_{number}" for number in range(len(tools)))
    lines = [f"start: call{more}", f"call: {kinds}"]
    lines += [f'call_{number}: "{OPEN}\\n" {_call(tool)} "\\n{CLOSE}"' for number, tool in enumerate(tools)]
    return Grammar("\n".join(lines) + "\n", _schemas(tools))


def free_grammar(tools: Sequence[Tool], answer: Schema | None) -> Grammar:
    """An answer of calls or of words, as the model likes. Calls follow their tools' schemas; the words are free where
    `answer` is None, JSON after that schema otherwise."""
    if answer is not None:
        whole, calls = json_grammar(answer), calls_grammar(tools, many=True)
        grammar = calls.lark.replace("start:", f"start: answer | calls\nanswer: %json {_options(answer)}\ncalls:", 1)
        return Grammar(grammar, whole.schemas + calls.schemas)
    kinds = " | ".join(f"call_{number}" for number in range(len(tools)))
    lines = ["start: said_call* rest", "rest: TEXT", "TEXT: /(.|\\n)*/", f'open[lazy]: TEXT "{OPEN}"']
    lines += [f'said_call: open /[ \\n]?/ ({kinds}) /[ \\n]?/ "{CLOSE}"']
    lines += [f"call_{number}: {_call(tool)}" for number, tool in enumerate(tools)]
    return Grammar("\n".join(lines) + "\n", _schemas(tools))


def _call(tool: Tool) -> str:
    """The JSON of a call; its arguments stand on their own, since their schema's references begin at its root."""
    head = f'{{"name": {json.dumps(tool.name)}, "arguments": '
    return f'{json.dumps(head)} %json {_options(tool.parameters, lenient=not tool.strict)} "}}"'


def _schemas(tools: Sequence[Tool]) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        ("tools", f"function '{tool.name}'", _options(tool.parameters, lenient=not tool.strict)) for tool in tools
    )


def _options(schema: Schema, lenient: bool = False) -> str:
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": _SPACE, "lenient": lenient}})

"""The form that a chat request asks for: `response_format`, `tool_choice`, and tools that are strict."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from tunesmith.inference.grammar import Grammar, Schema, Tool, calls_grammar, free_grammar, json_grammar
from tunesmith.serving.errors import ApiError

MAX_SCHEMA = 128 * 1024
"""Characters of one schema: reading a grammar takes the engine's time from everybody."""
NO_ARGUMENTS: Schema = {"type": "object", "properties": {}, "additionalProperties": False}


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: StrictBool | None = None
    """Taken without effect: an answer follows its schema, strict or not."""


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: StrictStr
    json_schema: JsonSchema | None = None

    def schema_of_answer(self) -> Schema | None:
        """None where the answer is free text. Raises ApiError for a type that is not known."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        if self.type != "json_schema":
            raise ApiError(
                f"'response_format' of type '{self.type[:40]}' is not supported: it can be 'text', 'json_object' or "
                "'json_schema'.",
                param="response_format",
                code="unsupported_value",
            )
        if self.json_schema is None:
            raise ApiError("Missing required parameter: 'response_format.json_schema'", param="response_format")
        return _within_limits(self.json_schema.schema_ or {"type": "object"}, "response_format")


def chosen_tool(choice: str | Mapping[str, object] | None, tools: Sequence[Mapping[str, object]] | None) -> str | Tool:
    """`auto`, `none`, `required`, or the tool that must be called. Raises ApiError (param `tool_choice`, `tools`)."""
    if choice is None or choice in ("auto", "none"):
        return choice or "auto"
    named = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = named.get("name") if isinstance(named, dict) else None
    if choice != "required" and not isinstance(name, str):
        raise ApiError(
            "'tool_choice' can be 'none', 'auto', 'required' or "
            '{"type": "function", "function": {"name": ...}} on this server.',
            param="tool_choice",
            code="unsupported_value",
        )
    if not tools:
        raise ApiError("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
    if choice == "required":
        return "required"
    for tool in read_tools(tools):
        if tool.name == name:
            return tool
    raise ApiError(f"'tool_choice' names '{str(name)[:64]}', which is not among 'tools'.", param="tool_choice")


def grammar_of(
    answer: Schema | None, tools: Sequence[Mapping[str, object]] | None, choice: str | Tool, *, many: bool
) -> Grammar | None:
    """What the answer must look like; None where anything goes. tools: those that the model sees. many: whether it may
    call more than one at once. Raises ApiError (param `tools`)."""
    if isinstance(choice, Tool):
        return calls_grammar([choice], many=False)
    if tools and choice == "required":
        return calls_grammar(read_tools(tools), many=many)
    if tools and (answer is not None or any(tool.strict for tool in read_tools(tools))):
        return free_grammar(read_tools(tools), answer)
    return None if answer is None else json_grammar(answer)


def read_tools(tools: Sequence[Mapping[str, object]]) -> list[Tool]:
    """Raises ApiError where one is not a function with a name and a schema of an object."""
    return [_read_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]


def _read_tool(tool: Mapping[str, object], where: str) -> Tool:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(f'{where} is not {{"type": "function", "function": {{"name": ...}}}}.', param="tools")
    parameters = function.get("parameters")
    if parameters is None:
        return Tool(function["name"], NO_ARGUMENTS, bool(function.get("strict")))
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise ApiError(
            f"Invalid schema for function '{function['name'][:64]}': its type is not 'object'.",
            param="tools",
            code="invalid_function_parameters",
        )
    return Tool(
        function["name"], {"type": "object", **_within_limits(parameters, "tools")}, bool(function.get("strict"))
    )


def _within_limits(schema: Schema, param: str) -> Schema:
    try:
        length = len(json.dumps(schema))
    except RecursionError:
        raise ApiError(f"A schema in '{param}' is nested too deep.", param=param) from None
    if length > MAX_SCHEMA:
        raise ApiError(f"A schema in '{param}' is longer than {MAX_SCHEMA} characters.", param=param)
    return schema

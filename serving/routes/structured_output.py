"""Structured output of chat requests: `response_format`, `tool_choice` and strict tools."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from tunesmith.inference.grammar import Grammar, Schema, Tool, calls_grammar, free_grammar, json_grammar
from tunesmith.serving.errors import ApiError

MAX_SCHEMA = 128 * 1024
"""Limit of characters in a schema: compiling a grammar blocks the engine."""
NO_ARGUMENTS: Schema = {"type": "object", "properties": {}, "additionalProperties": False}


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: StrictBool | None = None
    """Ignored: the response follows the schema, strict or not."""


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: StrictStr
    json_schema: JsonSchema | None = None

    def response_schema(self) -> Schema | None:
        """The JSON schema of the response; None for free text. Raises ApiError for an unknown type."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        if self.type != "json_schema":
            raise ApiError(
                f"'response_format' of type '{self.type[:40]}' is not supported. Supported types: 'text', "
                "'json_object' and 'json_schema'.",
                param="response_format",
                code="unsupported_value",
            )
        if self.json_schema is None:
            raise ApiError("Missing required parameter: 'response_format.json_schema'", param="response_format")
        return _within_limits(self.json_schema.schema_ or {"type": "object"}, "response_format")


def chosen_tool(choice: str | Mapping[str, object] | None, tools: Sequence[Mapping[str, object]] | None) -> str | Tool:
    """`auto`, `none`, `required`, or the tool to call. Raises ApiError (param `tool_choice`, `tools`)."""
    if choice is None or choice in ("auto", "none"):
        return choice or "auto"
    named = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = named.get("name") if isinstance(named, dict) else None
    if choice != "required" and not isinstance(name, str):
        raise ApiError(
            "'tool_choice' must be 'none', 'auto', 'required' or "
            '{"type": "function", "function": {"name": ...}}.',
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
    raise ApiError(f"'tool_choice' names '{str(name)[:64]}', which is not in 'tools'.", param="tool_choice")


def grammar_of(
    schema: Schema | None, tools: Sequence[Mapping[str, object]] | None, choice: str | Tool, *, many: bool
) -> Grammar | None:
    """The grammar of the response; None if it is unconstrained. schema: of a response that is not a tool call. tools:
    those in the prompt. many: allow parallel tool calls. Raises ApiError (param `tools`)."""
    if isinstance(choice, Tool):
        return calls_grammar([choice], many=False)
    if tools and choice == "required":
        return calls_grammar(read_tools(tools), many=many)
    if tools and (schema is not None or any(tool.strict for tool in read_tools(tools))):
        return free_grammar(read_tools(tools), schema)
    return None if schema is None else json_grammar(schema)


def read_tools(tools: Sequence[Mapping[str, object]]) -> list[Tool]:
    """Parse the tools. Raises ApiError unless each is a function with a name and an object schema."""
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
            f"Invalid schema for function '{function['name'][:64]}': its type must be 'object'.",
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
        raise ApiError(f"A schema in '{param}' is nested too deeply.", param=param) from None
    if length > MAX_SCHEMA:
        raise ApiError(f"A schema in '{param}' is longer than {MAX_SCHEMA} characters.", param=param)
    return schema

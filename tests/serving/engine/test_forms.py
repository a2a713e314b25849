"""Structured outputs: a model with random weights generates JSON that follows a schema, and calls of its tools."""

import json
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tunesmith.data.tokenization.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "hello"}]


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


class Line(BaseModel):
    model_config = ConfigDict(extra="forbid")
    item: Literal["nut", "bolt", 'a "quoted" größe']
    count: int = Field(ge=0, le=99)


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")
    mood: Mood
    paid: bool
    lines: list[Line] = Field(max_length=2)
    note: str | None = Field(max_length=6)


WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Kyiv", "Rome"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
CLOCK = {
    "type": "object",
    "properties": {"zone": {"enum": [1, 2]}},
    "required": ["zone"],
    "additionalProperties": False,
}


def tool(name: str, parameters: dict | None, **more) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [tool("weather", WEATHER, strict=True), tool("clock", CLOCK)]


@pytest.fixture(scope="module")
def client(serve, tool_llama) -> openai.OpenAI:
    with serve({"base": (tool_llama, None)}) as running:
        yield running.client()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.load(tiny_llama)


def complete(client, **options):
    options = {"model": "base", "messages": MESSAGES, "max_completion_tokens": 400, "temperature": 1.3, **options}
    return client.chat.completions.create(**options)


def schema_format(schema: dict, **more) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def test_parse_returns_the_users_model(client):
    options = {"model": "base", "messages": MESSAGES, "response_format": Order, "max_completion_tokens": 400}
    choices = client.chat.completions.parse(**options, temperature=1.3, seed=1, n=6).choices
    choices += client.chat.completions.parse(**options, temperature=0).choices
    assert all(isinstance(choice.message.parsed, Order) for choice in choices)
    assert {choice.finish_reason for choice in choices} == {"stop"}
    assert len({choice.message.content for choice in choices}) > 3
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**options, "max_completion_tokens": 3})


def test_each_response_of_a_batch_follows_its_own_format(client):
    """With unconstrained responses, stop strings, biases and top_p; batched as one by one."""
    formats = [
        {"response_format": schema_format(Line.model_json_schema(), strict=True)},
        {"response_format": schema_format(WEATHER), "top_p": 0.5, "logit_bias": {"5": -50}},
        {"response_format": {"type": "json_object"}, "max_completion_tokens": 40},
        {"tools": TOOLS, "tool_choice": "required", "frequency_penalty": 0.5},
        {"max_completion_tokens": 40},
        {"response_format": schema_format(CLOCK), "stop": ["}"]},
    ]

    def respond(number: int):
        choice = complete(client, seed=number, **formats[number % len(formats)]).choices[0]
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
        return choice.message.content, calls, choice.finish_reason

    alone = [respond(number) for number in range(18)]
    with ThreadPoolExecutor(18) as pool:
        assert list(pool.map(respond, range(18))) == alone
    for start, schema in ((0, Line.model_json_schema()), (1, WEATHER), (2, {"type": "object"})):
        for content, _, finish in alone[start::6]:
            if finish == "stop":
                jsonschema.validate(json.loads(content), schema)
            else:
                assert (start, finish) == (2, "length")
                assert content.startswith("{")
    assert all(not content.startswith("{") for content, _, _ in alone[4::6])
    assert all(content.startswith("{") and "}" not in content for content, _, _ in alone[5::6])
    schemas = {"weather": WEATHER, "clock": CLOCK}
    for content, calls, finish in alone[3::6]:
        assert (finish == "tool_calls" and calls and content is None) or finish == "length"
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), schemas[name])


def test_a_structured_stream_equals_the_response_with_unmasked_logprobs(client):
    options = {"response_format": schema_format(WEATHER), "seed": 4, "logprobs": True, "top_logprobs": 3}
    whole = complete(client, **options).choices[0]
    chunks = [chunk.choices[0] for chunk in complete(client, stream=True, **options)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content
    tokens = [one.token for chunk in chunks if chunk.logprobs for one in chunk.logprobs.content]
    assert tokens == [one.token for one in whole.logprobs.content]
    assert "".join(tokens) == whole.message.content
    # Log-probabilities are reported before masking: some more likely token was not allowed.
    assert any(one.token not in [top.token for top in one.top_logprobs] for one in whole.logprobs.content)
    assert all(one.logprob < 0 for one in whole.logprobs.content)


def test_forced_tool_calls(client):
    required = complete(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=2, n=8).choices
    names = {call.function.name for choice in required for call in choice.message.tool_calls}
    assert names == {"weather", "clock"}
    assert {(choice.finish_reason, len(choice.message.tool_calls)) for choice in required} == {("tool_calls", 1)}
    named = {"type": "function", "function": {"name": "weather"}}
    choice = complete(client, tools=TOOLS, tool_choice=named, seed=3).choices[0]
    (call,) = choice.message.tool_calls
    assert (call.function.name, choice.finish_reason) == ("weather", "stop")  # as in the hosted API
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    several = [
        len(complete(client, tools=TOOLS, tool_choice="required", seed=s).choices[0].message.tool_calls)
        for s in range(6)
    ]
    assert max(several) > 1
    assert max(several) <= 16


def test_streamed_tool_calls_are_indexed(client):
    options = {"tools": TOOLS, "tool_choice": "required", "seed": 5}
    seed = next(
        s for s in range(20) if len(complete(client, **{**options, "seed": s}).choices[0].message.tool_calls) > 1
    )
    options["seed"] = seed
    whole = complete(client, **options).choices[0].message.tool_calls
    chunks = list(complete(client, stream=True, **options))
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert [part.index for part in parts] == list(range(len(whole)))
    assert [(part.function.name, part.function.arguments) for part in parts] == [
        (call.function.name, call.function.arguments) for call in whole
    ]
    assert len({part.id for part in parts}) == len(parts)
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    with client.chat.completions.stream(
        model="base", messages=MESSAGES, tools=TOOLS, tool_choice="required", seed=seed, temperature=1.3
    ) as events:
        final = events.get_final_completion().choices[0].message
    assert [call.function.arguments for call in final.tool_calls] == [call.function.arguments for call in whole]


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"response_format": schema_format({"type": "strin"})}, "response_format", "strin"),
        ({"response_format": schema_format({"not": {"type": "string"}})}, "response_format", "not"),
        ({"response_format": schema_format({"$ref": "#/$defs/nothing"})}, "response_format", "nothing"),
        ({"response_format": schema_format({"type": "string", "pattern": "(?<=a)b"})}, "response_format", "look"),
        ({"response_format": schema_format({"enum": ["x" * 200_000]})}, "response_format", "131072"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format", "name"),
        ({"response_format": {"type": "grammar"}}, "response_format", "grammar"),
        ({"tools": [tool("f", {"not": {}}, strict=True)]}, "tools", "'f'"),
        ({"tools": [tool("f", {"type": "strin"})], "tool_choice": "required"}, "tools", "'f'"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}], "tool_choice": "required"}, "tools", "tools[0]"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "'g'"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice", "required"),
        ({"tool_choice": "required"}, "tool_choice", "tools"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_unsupported_format_is_rejected_before_generation(client, options, param, message, stream):
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, stream=stream, **options)
    assert (raised.value.param or "").split(".")[0] == param
    assert message in raised.value.message


def test_unsupported_keywords_of_a_non_strict_tool_are_ignored(client):
    loose = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "uniqueItems": True}
    parameters = {"type": "object", "properties": {"a": loose}, "required": ["a"], "additionalProperties": False}
    choice = complete(client, tools=[tool("f", parameters)], tool_choice="required", parallel_tool_calls=False).choices[
        0
    ]
    arguments = json.loads(choice.message.tool_calls[0].function.arguments)
    assert set(arguments) == {"a"}
    assert set(arguments["a"]) <= {1, 2}


@pytest.mark.parametrize("depth", [200, 900])
def test_a_deeply_nested_schema_is_rejected_without_a_crash(client, depth):
    schema: dict = {"type": "boolean"}
    for _ in range(depth):
        schema = {"items": schema}
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, response_format=schema_format(schema))
    assert raised.value.param == "response_format"
    assert complete(client, max_completion_tokens=2).choices


def test_a_hostile_schema_is_rejected_while_others_are_answered(client):
    """Its automaton has 123,456,789 states: compiled in the inference process it stops every answer for minutes."""
    hostile = schema_format({"type": "integer", "multipleOf": 123456789})
    with ThreadPoolExecutor(1) as executor:
        rejected = executor.submit(complete, client, response_format=hostile)
        for _ in range(5):
            assert complete(client, max_completion_tokens=4)
        with pytest.raises(openai.BadRequestError, match="more than 2 s") as raised:
            rejected.result(timeout=120)
    assert raised.value.param == "response_format"

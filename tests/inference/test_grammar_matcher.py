"""Constrained generation: JSON that follows a schema, tool calls, or text with optional tool calls."""

import json

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.grammar import Tool, calls_grammar, free_grammar, json_grammar
from tunesmith.inference.grammar_matcher import GrammarMatcher

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


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.load(tiny_llama)


def write(matcher: GrammarMatcher, tokenizer: Tokenizer, text: str) -> bool:
    """Write the text as far as the grammar allows. Returns whether all of it was allowed."""
    for token in tokenizer.encode(text):
        logits = matcher.allowed(torch.zeros(tokenizer.vocab_size + 5))
        assert bool(torch.isinf(logits[-5:]).all())  # the padding of the vocabulary is not allowed
        if torch.isinf(logits[token]):
            return False
        matcher.take(token)
    return True


def may_end(matcher: GrammarMatcher, tokenizer: Tokenizer) -> bool:
    return not torch.isinf(matcher.allowed(torch.zeros(tokenizer.vocab_size))[list(tokenizer.stop_token_ids)]).all()


def test_optional_calls_of_a_strict_tool_follow_its_schema(tokenizer):
    grammar = free_grammar([Tool("weather", WEATHER, strict=True), Tool("clock", CLOCK)], None)
    matcher = GrammarMatcher(tokenizer, grammar)
    assert write(matcher, tokenizer, 'It is < 3 "degrees" <tool> {}. ')
    assert may_end(matcher, tokenizer)
    assert write(matcher, tokenizer, '<tool_call>\n{"name": "weather", "arguments": {"city": "')
    assert not may_end(matcher, tokenizer)
    assert not write(matcher, tokenizer, "Paris")
    assert write(matcher, tokenizer, 'Rome", "days": 3}}\n</tool_call>\n and more')
    assert may_end(matcher, tokenizer)
    assert write(matcher, tokenizer, '<tool_call>{"name": "clock", "arguments": {"zone": 1}}</tool_call>')
    assert not write(GrammarMatcher(tokenizer, grammar), tokenizer, '<tool_call>{"name": "other')


def test_a_response_schema_can_be_combined_with_tools(tokenizer):
    grammar = free_grammar([Tool("clock", CLOCK)], WEATHER)
    assert write(GrammarMatcher(tokenizer, grammar), tokenizer, '{"city": "Rome", "days": 3}')
    assert write(
        GrammarMatcher(tokenizer, grammar), tokenizer, '<tool_call>\n{"name": "clock", "arguments": {"zone": 2}}\n'
    )
    assert not write(GrammarMatcher(tokenizer, grammar), tokenizer, "It is")


VALUES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "integer", "minimum": -5, "maximum": 50}]),
    st.lists(st.sampled_from(["a", "ä€", 'q"', "\\", "</tool_call>", "\n"]), min_size=1, unique=True).map(
        lambda v: {"enum": v}
    ),
    st.just({"type": "string", "maxLength": 3}),
)
SCHEMAS = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        inner.map(lambda items: {"type": "array", "items": items, "maxItems": 2}),
        st.lists(inner, min_size=1, max_size=2).map(lambda options: {"anyOf": options}),
        st.dictionaries(st.sampled_from(["a", "b c", 'ü"', "$ref"]), inner, min_size=1, max_size=3).map(
            lambda named: {
                "type": "object",
                "properties": named,
                "required": list(named),
                "additionalProperties": False,
            }
        ),
    ),
    max_leaves=4,
)


@settings(max_examples=40)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32), as_call=st.booleans())
def test_random_output_validates_against_the_schema(tokenizer, schema, seed, as_call):
    """Tokens are drawn uniformly from the allowed ones, the worst case for a model."""
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"], "additionalProperties": False}
    grammar = calls_grammar([Tool("f", parameters, strict=True)], many=False) if as_call else json_grammar(schema)
    matcher, generator = GrammarMatcher(tokenizer, grammar), torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    for _ in range(600):
        probabilities = matcher.allowed(torch.zeros(tokenizer.vocab_size)).softmax(-1)
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        if token in tokenizer.stop_token_ids:
            break
        tokens.append(token)
        if matcher.take(token):
            break
    else:
        pytest.fail(f"no complete text: {tokenizer.decode(tokens)[:200]}")
    text = tokenizer.decode(tokens)
    if as_call:
        call = json.loads(text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
        assert call["name"] == "f"
        jsonschema.validate(call["arguments"], parameters)
    else:
        jsonschema.validate(json.loads(text), schema)

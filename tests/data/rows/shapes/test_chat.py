"""Chat rows in the formats of other tools become the same messages as their plain form."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.formats import guess_task, read_row

SYSTEM = {"role": "system", "content": "Be kind."}
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"name": "weather", "arguments": {"city": "Rome", "zone": None}}
CALLING = {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]}
RESULT = {"role": "tool", "content": "12 degrees"}
TOOLS = [{"name": "weather", "description": "w", "parameters": {"type": "object", "properties": {}}}]

FROM = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def turns(messages):
    """The messages as LLaMA-Factory writes them."""
    for message in messages:
        if "tool_calls" in message:
            calls = [call["function"] for call in message["tool_calls"]]
            yield {"from": "function_call", "value": json.dumps(calls if len(calls) > 1 else calls[0])}
        else:
            yield {"from": FROM[message["role"]], "value": message["content"]}


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": list(turns([USER, CALLING, RESULT, ANSWER]))},
        {"conversations": [USER, CALLING, RESULT, ANSWER]},
        {
            "conversations": [
                {"role": "human", "content": "q"},
                {"role": "function_call", "content": json.dumps([CALL])},
                {"role": "observation", "content": "12 degrees"},
                {"role": "gpt", "content": "a"},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "tool_call", "value": CALL},  # an object, as in a table's struct
                {"from": "tool_response", "value": "12 degrees"},
                {"from": "gpt", "value": "a"},
            ]
        },
        {"prompt": [USER], "completion": [CALLING, RESULT, ANSWER]},
        {"prompt": "q", "completion": [CALLING, RESULT, ANSWER]},
    ],
)
def test_every_format_with_tools_equals_messages(row):
    plain = read_row({"messages": [SYSTEM, USER, CALLING, RESULT, ANSWER], "tools": TOOLS}, "chat")
    read = read_row({**row, "system": "Be kind.", "tools": json.dumps(TOOLS)}, "chat")
    assert read == plain
    assert read.key() == plain.key()


def test_several_calls_and_their_ids_are_kept():
    calls = [{"id": "1", "name": "f", "arguments": '{"x": 1}'}, {"name": "g"}]
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(calls)}]}
    assert read_row(row, "chat").messages[1]["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
        {"type": "function", "function": {"name": "g", "arguments": {}}},
    ]


def test_only_the_completion_is_trained_unless_a_weight_says_so():
    row = {"prompt": [USER, ANSWER, USER, ANSWER | {"weight": 1}, USER], "completion": ANSWER}
    messages = read_row(row, "chat").messages
    assert [message.get("weight") for message in messages if message["role"] == "assistant"] == [0, 1, None]
    assert messages[-1] == ANSWER


def test_a_list_as_the_prompt_indicates_a_chat():
    assert guess_task({"prompt": [USER], "completion": [ANSWER]}) == "chat"
    with pytest.raises(Refusal, match="prompt is a list, not a string") as caught:
        read_row({"prompt": [USER], "completion": [ANSWER]}, "completion")
    assert "task chat" in caught.value.remedy


HUMAN = {"from": "human", "value": "q"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversations": [HUMAN, ANSWER]}, r'conversations\[1\] has "role", and the first turn "from"'),
        ({"conversations": [USER, {"from": "gpt", "value": "a"}]}, r'conversations\[1\] has "from"'),
        ({"conversations": [USER, {"role": "gpd", "content": "a"}]}, r"conversations\[1\]: unknown role 'gpd'"),
        ({"conversations": [USER, {"role": "gpt", "contents": "a"}]}, r'conversations\[1\] has no "content"'),
        ({"conversations": [HUMAN, {"from": "gpt", "valeu": "a"}]}, 'did you write it as "valeu"'),
        ({"conversations": [HUMAN, {"from": "function_call", "value": "{"}]}, r"conversations\[1\].value is not valid"),
        ({"conversations": [HUMAN, {"from": "function_call", "value": "[]"}]}, "contains no call"),
        ({"conversations": [HUMAN, {"from": "function_call", "value": "[3]"}]}, r"value\[0\] is a number, not a call"),
        ({"conversations": [HUMAN, {"from": "function_call", "value": "{}"}]}, "no function name"),
        ({"conversations": [HUMAN]}, "no assistant message"),
        ({"prompt": [USER], "completion": [USER, ANSWER]}, r"completion\[0\] is a user message"),
        ({"prompt": [], "completion": [ANSWER]}, "prompt has no messages"),
        ({"prompt": [USER], "completion": [{"role": "assistant", "content": ""}]}, r"completion\[0\]: .* is empty"),
        ({"prompt": [USER], "completion": [ANSWER | {"weight": 0}]}, "every assistant message has weight 0"),
        ({"prompt": [USER]}, '"completion" is missing'),
    ],
)
def test_invalid_rows_are_rejected_at_their_place(row, reason):
    with pytest.raises(Refusal, match=reason) as caught:
        read_row(row, "chat")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"question": "q", "answer": "a"}, "data.columns: {prompt: question, completion: answer}"),
        ({"query": "q", "response": "a"}, "data.columns: {prompt: query, completion: response}"),
        ({"prompt": "q", "response": "a"}, "data.columns: {completion: response}"),
        ({"instruction": "q", "response": "a"}, "data.columns: {output: response}"),
    ],
)
def test_other_names_of_question_and_answer_are_named_with_the_key_that_maps_them(row, hint):
    with pytest.raises(Refusal) as caught:
        read_row(row, "chat")
    assert hint in caught.value.remedy


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)
CALLS = st.lists(
    st.fixed_dictionaries({"name": WORDS, "arguments": st.dictionaries(WORDS, st.none() | st.integers() | WORDS)}),
    min_size=1,
    max_size=2,
)


@st.composite
def conversations(draw):
    messages = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages.append({"role": "user", "content": draw(WORDS)})
        if draw(st.booleans()):
            calls = [{"type": "function", "function": call} for call in draw(CALLS)]
            messages += [{"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": draw(WORDS)}]
        messages.append({"role": "assistant", "content": draw(WORDS)})
    return messages


@given(conversations(), st.dictionaries(st.sampled_from(["id", "source", "lang", "meta"]), WORDS))
@settings(max_examples=50, deadline=None)
def test_turns_equal_messages_whatever_other_keys_the_row_has(messages, more):
    plain = read_row({"messages": messages}, "chat")
    for row in ({"conversations": list(turns(messages))}, {"conversations": messages}):
        assert read_row({**row, **more}, "chat") == plain


@given(st.from_regex("[a-z]{1,10}_call_field", fullmatch=True), WORDS)
@settings(max_examples=25, deadline=None)
def test_an_unknown_key_of_a_call_is_named(key, value):
    call = {"name": "f", "arguments": {}, key: value}
    row = {"conversations": [HUMAN, {"from": "function_call", "value": json.dumps(call)}]}
    with pytest.raises(Refusal, match=f'unknown key "{key}"'):
        read_row(row, "chat")

import json

import pytest

from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.formats import Completion, Conversation, Text, guess_task, read_row

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def chat(*messages, **more):
    return {"messages": list(messages), **more}


def test_openai_messages_are_read_unchanged():
    row = read_row(chat({"role": "system", "content": ""}, USER, ANSWER | {"weight": 0}, USER, ANSWER), "chat")
    assert isinstance(row, Conversation)
    assert row.messages == [{"role": "system", "content": ""}, USER, ANSWER | {"weight": 0}, USER, ANSWER]
    assert row.tools is None


def test_sharegpt_turns_become_messages():
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert read_row({"conversations": turns}, "chat").messages == [USER, ANSWER]
    row = read_row({"conversations": turns, "system": "Be kind.", "tools": '[{"name": "t"}]'}, "chat")
    assert row.messages == [{"role": "system", "content": "Be kind."}, USER, ANSWER]
    assert row.tools == [{"name": "t"}]


def test_completion_formats_become_conversations_for_the_task_chat():
    assert read_row({"prompt": "q", "completion": "a"}, "chat").messages == [USER, ANSWER]
    alpaca = {"instruction": "q", "input": "x", "output": "a", "system": "s", "history": [["h", "i"]]}
    assert read_row(alpaca, "chat").messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "h"},
        {"role": "assistant", "content": "i"},
        {"role": "user", "content": "q\n\nx"},
        ANSWER,
    ]


def test_completions_keep_prompt_and_completion():
    assert read_row({"prompt": "", "completion": "a"}, "completion") == Completion("", "a")
    row = read_row({"instruction": "Add {1}", "input": "", "output": "2"}, "completion")
    assert row.prompt.endswith("### Instruction:\nAdd {1}\n\n### Response:\n")
    assert "### Input:\n5\n" in read_row({"instruction": "i", "input": "5", "output": "2"}, "completion").prompt
    assert read_row({"text": "t", "source": "web"}, "text") == Text("t")


def test_text_parts_are_joined_and_nulls_are_removed():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = read_row(chat({"role": "user", "content": parts, "name": None}, ANSWER | {"weight": None}), "chat")
    assert row.messages == [{"role": "user", "content": "ab"}, ANSWER]


def test_tool_call_arguments_become_objects():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = read_row(
        chat(USER, message, {"role": "tool", "content": "", "tool_call_id": "1"}, ANSWER, tools=[{"x": 1}]), "chat"
    )
    assert row.messages[1] == {
        "role": "assistant",
        "tool_calls": [{**call, "function": {"name": "f", "arguments": {"x": 1}}}],
    }
    assert "content" not in row.messages[1]


def test_keys_are_equal_only_for_equal_content():
    def key(value, task="chat"):
        return read_row(value, task).key()

    base = key(chat(USER, ANSWER))
    assert len(base) == 16
    assert key(chat(USER, ANSWER | {"weight": 1}), "chat") == base
    assert key(chat(USER, {"content": "a", "weight": 1, "role": "assistant"})) == base
    assert key({"prompt": "q", "completion": "a"}) == base
    different = [
        chat({"role": "system", "content": "q"}, USER, ANSWER),
        chat(USER, {"role": "assistant", "content": "a "}),
        chat({"role": "user", "content": "qa"}, {"role": "assistant", "content": "a"}),
        chat(USER, ANSWER, tools=[{"n": 1}]),
        chat(USER, ANSWER | {"name": "bot"}),
    ]
    assert len({base, *map(key, different)}) == 6
    assert key({"prompt": "ab", "completion": "c"}, "completion") != key(
        {"prompt": "a", "completion": "bc"}, "completion"
    )


@pytest.mark.parametrize(
    ("value", "task", "message"),
    [
        ([], "chat", "the row is a list"),
        (3, "chat", "the row is a number"),
        ({"mesages": []}, "chat", 'did you mean "messages"'),
        ({"messages": None}, "chat", '"messages" is null'),
        ({"x": 1}, "chat", 'keys are "x"'),
        ({"text": "t"}, "chat", "the row is for the task text"),
        (chat(USER, ANSWER), "text", "the row is for the task chat"),
        (chat(USER, ANSWER), "completion", "set `task: chat`"),
        (chat(USER, ANSWER, tool=[]), "chat", 'did you mean "tools"'),
        ({"messages": []}, "chat", "at least one message"),
        ({"messages": {"role": "user"}}, "chat", "not a list"),
        (chat("hi"), "chat", "messages[0] is not an object"),
        (chat({"role": "user"}, ANSWER), "chat", 'messages[0] has no "content"'),
        (chat({"role": "user", "contents": "q"}, ANSWER), "chat", 'did you write it as "contents"'),
        (chat({"rol": "user", "content": "q"}, ANSWER), "chat", 'has no "role"; did you write it as "rol"'),
        (chat({"role": "user", "content": 5}, ANSWER), "chat", "messages[0].content is a number, not a string"),
        (
            chat(USER, {"role": "assistent", "content": "a"}),
            "chat",
            "unknown role 'assistent'; did you mean \"assistant\"",
        ),
        (chat(USER, {"role": ["assistant"], "content": "a"}), "chat", "unknown role"),
        (chat(USER, {"role": "assistant", "content": ""}), "chat", "the assistant message is empty"),
        (chat(USER, {"role": "assistant", "content": " \n"}), "chat", "the assistant message is empty"),
        (chat(USER, {"role": "assistant", "content": None}), "chat", 'messages[1] has no "content" (null)'),
        (chat({"role": "user", "content": ""}, ANSWER), "chat", "the user message is empty"),
        (chat(USER), "chat", "no supervised token: the row has no assistant message"),
        (chat(USER, ANSWER | {"weight": 0}), "chat", "every assistant message has weight 0"),
        (chat(USER, ANSWER | {"weight": 0.5}), "chat", "weight is 0.5"),
        (chat(USER, ANSWER | {"weight": "1"}), "chat", "weight is '1'"),
        (chat(USER | {"weight": 1}, ANSWER), "chat", "a user message with weight 1"),
        (chat(USER, ANSWER | {"wieght": 0}), "chat", 'did you mean "weight"'),
        (chat(USER, ANSWER | {"function_call": {}}), "chat", "has no function name"),
        (chat(USER, ANSWER | {"function_call": {"name": "f"}, "tool_calls": 3}), "chat", "tool_calls is not a list"),
        (chat(USER | {"tool_calls": [{}]}, ANSWER), "chat", "only assistant messages call tools"),
        (
            chat(USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}),
            "chat",
            "has no function name",
        ),
        (
            chat(USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
            "chat",
            "not valid JSON",
        ),
        (chat(USER, ANSWER, tools="nonsense"), "chat", "tools is not valid JSON"),
        (chat(USER, ANSWER, tools=["x"]), "chat", "not a list of objects"),
        (chat({"role": "user", "content": [{"type": "image_url"}]}, ANSWER), "chat", "of type 'image_url'"),
        (chat({"role": "user", "content": "a\0b"}, ANSWER), "chat", "messages[0].content contains a NUL"),
        (chat({"role": "user", "content": "a\ud800"}, ANSWER), "chat", "lone surrogate"),
        (chat(USER, ANSWER | {"name": "a\0"}), "chat", "messages[1].name contains a NUL"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpd", "value": "a"}]},
            "chat",
            'did you mean "gpt"',
        ),
        ({"conversations": [{"from": "human", "valeu": "q"}]}, "chat", 'has no "value"; did you write it as "valeu"'),
        ({"prompt": "q", "completions": "a"}, "completion", 'unknown key "completions"; did you mean "completion"'),
        ({"prompt": "q", "answer": "a"}, "completion", '"completion" is missing'),
        ({"prompt": "q", "completion": ""}, "completion", "completion is empty"),
        ({"prompt": ["q"], "completion": "a"}, "completion", "prompt is a list, not a string"),
        ({"prompt": "", "completion": "a"}, "chat", "prompt is empty"),
        ({"instruction": "i", "inputs": "x", "output": "o"}, "chat", 'did you mean "input"'),
        ({"instruction": "i", "history": [["a"]], "output": "o"}, "chat", "history[0] is not a pair"),
        ({"instruction": "i", "system": "s", "output": "o"}, "completion", '"system" is not supported in a completion'),
        ({"text": ""}, "text", "text is empty"),
        ({"txet": "a"}, "text", 'did you mean "text"'),
    ],
)
def test_invalid_rows_are_rejected_with_reason_and_remedy(value, task, message):
    with pytest.raises(Refusal) as caught:
        read_row(value, task)
    assert message in f"{caught.value.reason} | {caught.value.remedy}"
    assert caught.value.remedy


def test_the_message_of_a_refusal_is_bounded():
    with pytest.raises(Refusal) as caught:
        read_row({"k" * 100_000: 1} | {str(n): n for n in range(1000)}, "chat")
    assert len(caught.value.remedy) < 400
    json.dumps(caught.value.reason)


def test_the_task_is_inferred_from_the_keys():
    assert guess_task(chat(USER)) == guess_task({"conversations": []}) == "chat"
    assert guess_task({"prompt": "a"}) == guess_task({"instruction": "a"}) == "completion"
    assert guess_task({"text": "a"}) == "text"
    assert guess_task({"x": 1}) is guess_task([1]) is None


# --- keys next to the messages that change what is trained

SYSTEM = {"role": "system", "content": "Answer as a pirate."}
TOOL = {"name": "clock", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "output": "a"},
    ],
    ids=lambda row: next(iter(row)),
)
def test_every_chat_format_takes_a_system_message_and_tools(row):
    read = read_row({**row, "system": SYSTEM["content"], "tools": [TOOL]}, "chat")
    assert read.messages == [SYSTEM, USER, ANSWER]
    assert read.tools == [TOOL]
    legacy = read_row({**row, "functions": [TOOL]}, "chat")
    assert legacy.messages == [USER, ANSWER]
    assert legacy.tools == [{"type": "function", "function": TOOL}]
    assert read_row({**row, "system": "", "tools": [], "functions": None}, "chat").tools is None


@pytest.mark.parametrize(
    ("row", "task", "reason"),
    [
        (chat(SYSTEM, USER, ANSWER, system="Be kind."), "chat", 'has "system" and begins with a system message'),
        (chat(USER, ANSWER, tools=[TOOL], functions=[TOOL]), "chat", 'both "tools" and "functions"'),
        (chat(USER, ANSWER, functions="clock"), "chat", "functions is not valid JSON"),
        (chat(USER, ANSWER, images=["a.png"]), "chat", 'the row has "images"'),
        ({"text": "<image> a cat", "image": "cat.png"}, "text", 'the row has "image"'),
        ({"prompt": "q", "completion": "a", "system": "s"}, "completion", '"system" is not supported in a completion'),
        ({"prompt": "q", "completion": "a", "tools": [TOOL]}, "completion", '"tools" is not supported'),
        ({"instruction": "q", "output": "a", "functions": [TOOL]}, "completion", '"functions" is not supported'),
    ],
)
def test_keys_that_cannot_be_used_are_rejected(row, task, reason):
    with pytest.raises(Refusal, match=reason):
        read_row(row, task)


@pytest.mark.parametrize("key", ["images", "videos", "audio"])
def test_empty_media_keys_are_ignored(key):
    assert read_row(chat(USER, ANSWER, **{key: []}), "chat").messages == [USER, ANSWER]


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({"train": False}, 0),
        ({"trainable": False}, 0),
        ({"loss": 0}, 0),
        ({"masked": True}, 0),
        ({"train": True}, 1),
        ({"masked": False}, 1),
        ({"loss": True, "weight": 1}, 1),
        ({"train": None}, None),
    ],
)
def test_training_keys_of_other_tools_are_weights(keys, weight):
    expected = ANSWER if weight is None else ANSWER | {"weight": weight}
    assert read_row(chat(USER, ANSWER, USER, ANSWER | keys, USER, ANSWER), "chat").messages[3] == expected
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    turns += [turns[0], turns[1] | keys]
    assert read_row({"conversations": turns}, "chat").messages[3] == expected


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (ANSWER | {"train": "no"}, r"messages\[1\].train is 'no'"),
        (ANSWER | {"train": False, "weight": 1}, r"messages\[1\]: train contradicts"),
        (ANSWER | {"masked": True, "trainable": True}, r"messages\[1\]: masked contradicts|trainable contradicts"),
        ({"role": "user", "content": "q", "train": True}, "only assistant messages|user message with weight 1"),
    ],
)
def test_contradicting_training_keys_are_rejected(message, reason):
    with pytest.raises(Refusal, match=reason):
        read_row(chat(USER, message, USER, ANSWER), "chat")


@pytest.mark.parametrize("message", [USER, ANSWER])
def test_an_empty_list_of_tool_calls_is_no_call(message):
    messages = [USER, ANSWER]
    messages[messages.index(message)] = message | {"tool_calls": []}
    assert read_row(chat(*messages), "chat").messages == [USER, ANSWER]
    with pytest.raises(Refusal, match='no "content"'):
        read_row(chat(USER, {"role": "assistant", "tool_calls": []}), "chat")


def test_content_of_plain_strings_is_named():
    with pytest.raises(Refusal, match=r"messages\[0\].content\[0\] is a string, not an object") as caught:
        read_row(chat({"role": "user", "content": ["Hello."]}, ANSWER), "chat")
    assert '{"type": "text"' in caught.value.remedy

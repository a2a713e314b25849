"""Tool calls in streamed text: the result does not depend on how the text is split; nothing of a call is content."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.tokenization.families import SPECIAL
from tests.data.tokenization.thinking_families import SPECIAL_TOKENS, THINKING_FAMILIES
from tunesmith.data.tokenization.chat_template import ChatTemplate
from tunesmith.inference.thinking import Thinking
from tunesmith.inference.tool_calls.call import ToolCall
from tunesmith.inference.tool_calls.formats import FORMATS, HARMONY, HERMES, format_of, schemas_of
from tunesmith.inference.tool_calls.harmony import HarmonyReader
from tunesmith.inference.tool_calls.reader import ToolCallReader

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Kyiv", "days": 2}}\n</tool_call>'
BROKEN = '<tool_call>{"name": 3}</tool_call>'
SEGMENTS = st.lists(st.sampled_from([CALL, BROKEN, "It is < 3. ", "\n", "<tool", "<tool_call", "text"]), max_size=6)
SIZES = st.lists(st.integers(1, 9), min_size=1)
PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "tags": {"type": "array"}}
PARAMETERS = {"type": "object", "properties": PROPERTIES}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
BY_NAME = {known.name: known for known in FORMATS}
ARGUMENTS = {"city": 'Os"lo <b>, {x}', "days": 2, "tags": ["a", "b"]}
JSON = json.dumps(ARGUMENTS)
# The text of one call of `weather` in each format, and texts that begin like a call and are none.
CALLS = {
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>',
    "qwen3_coder": (
        "<tool_call>\n<function=weather>\n<parameter=city>\n" + ARGUMENTS["city"] + "\n</parameter>\n"
        '<parameter=days>\n2\n</parameter>\n<parameter=tags>\n["a", "b"]\n</parameter>\n</function>\n</tool_call>'
    ),
    "mistral": f"[TOOL_CALLS]weather[ARGS]{JSON}",
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        f"{JSON}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "gemma": (
        '<|tool_call>call:weather{city:<|"|>Os"lo <b>, {x}<|"|>,days:2,tags:[<|"|>a<|"|>,<|"|>b<|"|>]}<tool_call|>'
    ),
    "functiongemma": (
        '<start_function_call>call:weather{city:<escape>Os"lo <b>, {x}<escape>,days:2,'
        "tags:[<escape>a<escape>,<escape>b<escape>]}<end_function_call>"
    ),
    "llama3_json": f'{{"name": "weather", "parameters": {JSON}}}',
}
MALFORMED = {
    "hermes": [BROKEN, "<tool_call>no JSON</tool_call>"],
    "qwen3_coder": ["<tool_call>\n<function=weather>\ntext\n</function>\n</tool_call>", "<tool_call>x</tool_call>"],
    "mistral": ["[TOOL_CALLS]weather[ARGS]{broken", "[TOOL_CALLS] [1, 2]"],
    "deepseek_v3": ["<｜tool▁calls▁begin｜>text<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"],
    "gemma": ["<|tool_call>call:weather{city}<tool_call|>", "<|tool_call>weather<tool_call|>"],
    "functiongemma": ["<start_function_call>call:weather{city:<end_function_call>"],
    "llama3_json": ['{"name": "other", "parameters": {}}', '{"temperature": 3}', '{"name": "weather", "para'],
}
EXPECTED = {
    "gpt-oss": HARMONY,
    **dict.fromkeys(("qwen-3", "qwen-3-thinking", "qwen-2.5"), "hermes"),
    "qwen-3-coder": "qwen3_coder",
    **dict.fromkeys(("deepseek-v3", "deepseek-v3.1-tools"), "deepseek_v3"),
    **dict.fromkeys(("magistral", "mistral-v0.3"), "mistral"),
    **dict.fromkeys(("gemma-4", "gemma-4-large"), "gemma"),
    "functiongemma": "functiongemma",
    **dict.fromkeys(("llama-3.1", "llama-3.2"), "llama3_json"),
}


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces, start, number = [], 0, 0
    while start < len(text):
        size = sizes[number % len(sizes)]
        pieces.append(text[start : start + size])
        start, number = start + size, number + 1
    return pieces


def merged(parts):
    result = []
    for part in parts:
        if result and type(part) is type(result[-1]) and not isinstance(part, ToolCall):
            last = result.pop()
            part = last + part if isinstance(part, str) else Thinking(last.text + part.text)
        result.append(part)
    return result


def read(pieces: list[str], name: str = "hermes"):
    reader, parts = ToolCallReader([BY_NAME[name]], schemas_of(TOOLS)), []
    for piece in pieces:
        parts += reader.add(piece)
    return merged([*parts, *reader.finish()])


@given(SEGMENTS, SIZES)
def test_parsing_does_not_depend_on_how_the_text_is_split(segments, sizes):
    text = "".join(segments)
    assert read(cut(text, sizes)) == read([text]) == read(list(text))


def test_calls_and_content_are_separated():
    parts = read([f"Let me check.\n{CALL}\n{CALL}\n"])
    assert parts[0] == "Let me check.\n"
    assert [type(part) for part in parts[1:]] == [ToolCall, ToolCall]
    assert parts[1].name == "weather"
    assert json.loads(parts[1].arguments) == {"city": "Kyiv", "days": 2}
    assert read([CALL.removesuffix("</tool_call>")]) == [parts[1]]
    assert read([BROKEN]) == [BROKEN]
    assert read(["3 < 4 and <tool"]) == ["3 < 4 and <tool"]
    assert read([" "]) == [" "]


def test_every_format_has_a_text():
    assert CALLS.keys() == MALFORMED.keys() == BY_NAME.keys()


@pytest.mark.parametrize("name", CALLS)
@given(sizes=SIZES)
@settings(max_examples=15, deadline=None)
def test_a_call_of_every_format_is_read_from_a_stream(name, sizes):
    lead = "" if name == "llama3_json" else "Let me check.\n"
    text = lead + CALLS[name]
    reader, content, calls = ToolCallReader([BY_NAME[name]], schemas_of(TOOLS)), "", []
    for piece in cut(text, sizes):
        for part in reader.add(piece):
            if isinstance(part, ToolCall):
                calls.append(part)
            else:
                content += part
        assert lead.startswith(content)  # nothing of a call, also not the beginning of one
    for part in reader.finish():
        assert isinstance(part, ToolCall)
        calls.append(part)
    assert content == lead
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("weather", ARGUMENTS)]


@pytest.mark.parametrize("name", CALLS)
def test_several_calls_and_content_after_them(name):
    between = "; " if name == "llama3_json" else "\n"
    parts = read(list(CALLS[name] + between + CALLS[name]), name)
    assert [type(part) for part in parts] == [ToolCall, ToolCall]
    assert [json.loads(part.arguments) for part in parts] == [ARGUMENTS, ARGUMENTS]


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_call_is_content(name):
    for text in MALFORMED[name]:
        assert read([text], name) == read(list(text), name) == [text]
        assert read(list(f"{text} and text"), name) == [f"{text} and text"]


def test_older_forms_of_a_format():
    calls = [{"name": "weather", "arguments": ARGUMENTS, "id": "abcdefgh1"}] * 2
    both = read(list(f"[TOOL_CALLS] {json.dumps(calls)}"), "mistral")
    assert [json.loads(call.arguments) for call in both] == [ARGUMENTS] * 2
    assert read([f"[TOOL_CALLS]weather[CALL_ID]abcdefgh1[ARGS]{JSON}"], "mistral") == both[:1]
    assert read([f"<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{JSON}<｜tool▁call▁end｜>"], "deepseek_v3") == both[:1]
    assert read([f'<|python_tag|>{{"name": "weather", "parameters": {JSON}}}'], "llama3_json") == both[:1]
    assert (
        read([CALLS["qwen3_coder"].removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")], "qwen3_coder")
        == both[:1]
    )


def template_of(family: str) -> ChatTemplate:
    tokens = [*SPECIAL, *SPECIAL_TOKENS]
    return ChatTemplate(THINKING_FAMILIES[family], "<s>", "</s>", special_tokens=tokens, where=family)


@pytest.mark.parametrize("family", THINKING_FAMILIES)
def test_the_format_is_that_of_the_template(family):
    known = format_of(template_of(family))
    assert (known if known is None or isinstance(known, str) else known.name) == EXPECTED.get(family)


# --- Harmony ---------------------------------------------------------------------------------------------------------

HARMONY_CALL = f" to=functions.weather<|channel|>commentary json<|message|>{JSON}"
LATER_CALL = f"<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{JSON}"
THOUGHT = "<|channel|>analysis<|message|>I add < 3.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>It is 4 <b>."
WEATHER = ToolCall("weather", JSON)
HARMONY_TEXTS = {
    THOUGHT + FINAL: [Thinking("I add < 3."), "It is 4 <b>."],
    HARMONY_CALL: [WEATHER],
    THOUGHT + LATER_CALL: [Thinking("I add < 3."), WEATHER],
    LATER_CALL + "<|call|>" + LATER_CALL: [WEATHER, WEATHER],
    "<|channel|>commentary<|message|>Let me look.<|end|>" + LATER_CALL: ["Let me look.", WEATHER],
    "<|channel|>final<|message|>": [],
    "plain text": ["plain text"],
    " to=functions.weather<|channel|>commentary<|message|>no JSON": [
        " to=functions.weather<|channel|>commentary<|message|>no JSON"
    ],
}


@pytest.mark.parametrize("text", HARMONY_TEXTS)
@given(sizes=SIZES)
@settings(max_examples=10, deadline=None)
def test_harmony_messages_are_separated_by_channel(text, sizes):
    reader, parts = HarmonyReader(), []
    for piece in cut(text, sizes):
        parts += reader.add(piece)
        assert not any("<|" in part for part in parts if isinstance(part, str) and part not in HARMONY_TEXTS[text])
    assert merged([*parts, *reader.finish()]) == HARMONY_TEXTS[text]


def test_harmony_without_tools_shows_calls_as_content():
    reader = HarmonyReader(calls=False)
    parts = merged([*reader.add(THOUGHT + LATER_CALL), *reader.finish()])
    assert parts == [Thinking("I add < 3."), JSON]
    assert reader.num_calls == 0


def test_constrained_calls_are_read_next_to_the_own_format():
    reader = ToolCallReader([BY_NAME["llama3_json"], HERMES], schemas_of(TOOLS))
    assert [type(part) for part in [*reader.add(f"text {CALL}"), *reader.finish()]] == [str, ToolCall]

"""Tool calls in streamed text: the result does not depend on how the text is split."""

import json

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.inference.tool_calls import ToolCall, ToolCallReader

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Kyiv", "days": 2}}\n</tool_call>'
BROKEN = '<tool_call>{"name": 3}</tool_call>'
SEGMENTS = st.lists(st.sampled_from([CALL, BROKEN, "It is < 3. ", "\n", "<tool", "<tool_call", "text"]), max_size=6)


def read(pieces: list[str]) -> list[str | ToolCall]:
    reader, parts = ToolCallReader(), []
    for piece in pieces:
        parts += reader.add(piece)
    parts += reader.finish()
    merged: list[str | ToolCall] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return merged


@given(SEGMENTS, st.lists(st.integers(1, 9), min_size=1))
def test_parsing_does_not_depend_on_how_the_text_is_split(segments, sizes):
    text = "".join(segments)
    pieces, start, number = [], 0, 0
    while start < len(text):
        size = sizes[number % len(sizes)]
        pieces.append(text[start : start + size])
        start, number = start + size, number + 1
    assert read(pieces) == read([text]) == read(list(text))


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

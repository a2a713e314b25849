"""Text that arrives in pieces: stop strings, half characters, tool calls. However it is divided, the result is one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.stop import StopScanner
from tunesmith.inference.text_stream import TextStream
from tunesmith.inference.tool_calls import ToolCall, ToolCallReader

LETTERS = st.text("ab\n", max_size=12)
PIECES = st.lists(LETTERS, max_size=12)


def scan(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    shown = ""
    for piece in pieces:
        shown += scanner.add(piece)
        assert not any(stop in shown for stop in stops)
        if scanner.stopped:
            return shown, True
    return shown + scanner.finish(), False


@given(PIECES, st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4))
def test_a_stop_string_cuts_at_one_place_however_the_text_is_divided(pieces, stops):
    text = "".join(pieces)
    letters = scan(list(text), stops)
    assert scan(pieces, stops) == letters
    assert scan([text], stops) == letters
    shown, stopped = letters
    assert text.startswith(shown)
    assert stopped == any(stop in text for stop in stops)
    if stopped:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert shown == text


@given(PIECES, st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4))
def test_nothing_shown_is_the_beginning_of_a_stop_string_that_comes(pieces, stops):
    scanner, text, shown = StopScanner(stops), "", ""
    for piece in pieces:
        shown += scanner.add(piece)
        text += piece
        if scanner.stopped:
            return
        held = text[len(shown) :]
        assert text.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)  # and no more is held back than must be


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.load(tiny_llama)


@given(text=st.text(max_size=40))
def test_characters_are_given_out_whole(tokenizer, text):
    given_out: list[str] = []
    stream = TextStream(tokenizer, given_out.append)
    for token in tokenizer.encode(text):
        stream.add(token)
        assert text.startswith("".join(given_out))
    assert stream.finish() == text
    assert "".join(given_out) == text


@given(tokens=st.lists(st.integers(3, 383), max_size=40))
def test_any_tokens_give_the_text_that_they_have_as_a_whole(tokenizer, tokens):
    given_out: list[str] = []
    stream = TextStream(tokenizer, given_out.append)
    for token in tokens:
        stream.add(token)
    assert stream.finish() == tokenizer.decode(tokens)
    assert "".join(given_out) == tokenizer.decode(tokens)


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Kyiv", "days": 2}}\n</tool_call>'
BROKEN = '<tool_call>{"name": 3}</tool_call>'
SEGMENTS = st.lists(st.sampled_from([CALL, BROKEN, "It is < 3. ", "\n", "<tool", "<tool_call", "words"]), max_size=6)


def read(pieces: list[str]) -> list[str | ToolCall]:
    reader, parts = ToolCallReader(), []
    for piece in pieces:
        parts += reader.add(piece)
    parts += reader.finish()
    joined: list[str | ToolCall] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


@given(SEGMENTS, st.lists(st.integers(1, 9), min_size=1))
def test_calls_are_read_however_the_text_is_divided(segments, sizes):
    text = "".join(segments)
    pieces, start, number = [], 0, 0
    while start < len(text):
        size = sizes[number % len(sizes)]
        pieces.append(text[start : start + size])
        start, number = start + size, number + 1
    assert read(pieces) == read([text]) == read(list(text))


def test_calls_and_content_are_told_apart():
    parts = read([f"Let me look.\n{CALL}\n{CALL}\n"])
    assert parts[0] == "Let me look.\n"
    assert [type(part) for part in parts[1:]] == [ToolCall, ToolCall]
    assert parts[1].name == "weather"
    assert json.loads(parts[1].arguments) == {"city": "Kyiv", "days": 2}
    assert read([CALL.removesuffix("</tool_call>")]) == [parts[1]]
    assert read([BROKEN]) == [BROKEN]
    assert read(["3 < 4 and <tool"]) == ["3 < 4 and <tool"]
    assert read([" "]) == [" "]

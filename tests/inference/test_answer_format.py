"""Thinking in streamed answers, and what a template says about them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.tokenization.thinking_families import THINKING_FAMILIES
from tests.inference.test_tool_calls import CALL, cut, merged, template_of
from tunesmith.inference.answer_format import AnswerFormat, TaggedReader, thinking_marks
from tunesmith.inference.text_stream import TextStream
from tunesmith.inference.thinking import Thinking, ThinkingMarks, ThinkingReader
from tunesmith.inference.tool_calls.call import ToolCall
from tunesmith.inference.tool_calls.formats import HERMES
from tunesmith.inference.tool_calls.reader import ToolCallReader

MARKS = ThinkingMarks("<think>", "</think>")
THOUGHT = Thinking("two < three\nmake five")
ANSWERS = {
    # (text of the model, whether the prompt opens the thinking): parts
    ("<think>\ntwo < three\nmake five\n</think>\n\n5 </b>", False): [THOUGHT, "5 </b>"],
    ("two < three\nmake five\n</think>\n\n5", True): [THOUGHT, "5"],
    ("two < three\nmake five", True): [THOUGHT],
    ("<think>two < three\nmake five", False): [THOUGHT],
    (" 5 <think>", False): [" 5 <think>"],
    ("<thin", False): ["<thin"],
    ("<think>\n\n</think>\n\n5", False): ["5"],
    ("", True): [],
}


@pytest.mark.parametrize(("text", "is_open"), ANSWERS)
@given(sizes=st.lists(st.integers(1, 9), min_size=1))
@settings(max_examples=15, deadline=None)
def test_thinking_is_separated_however_the_text_is_split(text, is_open, sizes):
    reader, parts = ThinkingReader(MARKS, is_open=is_open), []
    for piece in cut(text, sizes):
        parts += reader.add(piece)
    assert merged([*parts, *reader.finish()]) == ANSWERS[text, is_open]


def test_calls_follow_thinking():
    reader = TaggedReader(ThinkingReader(MARKS, is_open=True), ToolCallReader())
    parts = [part for piece in f"I call <tool_call>.</think>\n\n{CALL}" for part in reader.add(piece)]
    parts = merged([*parts, *reader.finish()])
    assert parts[0] == Thinking("I call <tool_call>.")
    assert [type(part) for part in parts[1:]] == [ToolCall]
    assert reader.num_calls == 1


def test_a_grammar_leaves_no_place_for_thinking():
    answers = AnswerFormat(HERMES, MARKS, True, ((7,), (8,)))
    parts = [*(reader := answers.reader(None, structured=True, constrained=True)).add('{"a": 1}'), *reader.finish()]
    assert parts == ['{"a": 1}']
    assert answers.shown_tokens(reads_calls=False) == (7,)
    assert answers.shown_tokens(reads_calls=True) == (7, 8)


THINK = ThinkingMarks("<think>", "</think>")
FAMILY_MARKS = {
    **dict.fromkeys(("qwen-3", "qwen-3-thinking", "deepseek-v3.1", "smollm-3", "glm-4.5"), THINK),
    "magistral": ThinkingMarks("[THINK]", "[/THINK]"),
    **dict.fromkeys(("gemma-4", "gemma-4-large", "functiongemma"), ThinkingMarks("<|channel>thought", "<channel|>")),
}


@pytest.mark.parametrize("family", [family for family in THINKING_FAMILIES if family != "gpt-oss"])
def test_the_texts_around_thinking_are_those_of_the_template(family):
    assert thinking_marks(template_of(family)) == FAMILY_MARKS.get(family)


def test_special_tokens_of_a_format_are_part_of_the_text():
    class Vocabulary:
        stop_token_ids = ()

        def decode(self, ids, /):
            return "".join({1: "a", 2: "b"}.get(token, "") for token in ids)

    pieces: list[str] = []
    stream = TextStream(Vocabulary(), pieces.append, {7: "<call>"})
    for token in (1, 7, 2, 9, 7, 7):
        stream.add(token)
    assert stream.finish() == "".join(pieces) == "a<call>b<call><call>"

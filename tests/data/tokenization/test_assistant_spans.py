"""The trained characters of a conversation, compared with hand-written expectations for each template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.spans import render_with_spans
from tests.data.tokenization.families import template_of
from tunesmith.data.tokenization.assistant_spans import TemplateFailure
from tunesmith.data.tokenization.chat_template import ChatTemplate

ALL = ["chatml", "marked", "llama2", "llama3", "gemma", "phi3", "thinking"]
SPECIALS = ["<|im_start|>", "<|im_end|>", "</s>"]

# Difficult texts: special tokens, headers, marks of other templates, leading or trailing whitespace, whitespace only.
words = st.one_of(
    st.text(min_size=1, max_size=40),
    st.sampled_from(
        ["assistant\n", "<|im_end|>", "<|im_start|>assistant\n", "\n\nyes ", " [/INST] no", "</s>", "4", "👍\u200d"]
    ),
)
answers = words.filter(lambda text: text.strip() and not any("\ufdd0" <= c <= "\ufdd4" for c in text))
conversations = st.lists(st.tuples(answers, answers, st.sampled_from([None, 0, 1])), min_size=1, max_size=4)


def rendered(name: str, content: str, end: str) -> str:
    """How a template renders an assistant message with its end-of-turn token."""
    return {
        "llama2": f" {content} {end}",
        "llama3": content.strip() + end,
        "gemma": content.strip() + end,
    }.get(name, content + end)


def messages_of(turns):
    messages = []
    for question, answer, weight in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer} | ({} if weight is None else {"weight": weight}))
    return messages


@pytest.mark.parametrize("name", ALL)
@given(turns=conversations)
@settings(max_examples=60, deadline=None)
def test_trained_text_is_the_assistant_messages_and_end_of_turn_tokens(tokenizers, end_of_turn, name, turns):
    template = tokenizers[name].template
    messages = messages_of(turns)
    text, spans = render_with_spans(template, messages)
    assert text == template.render(messages)
    expected = [rendered(name, answer, end_of_turn[name]) for _, answer, weight in turns if weight != 0]
    assert [text[start:end] for start, end in spans] == expected
    for (start, _), number in zip(spans, [i for i, turn in enumerate(turns) if turn[2] != 0], strict=True):
        assert text[:start] == template.render(messages[: 2 * number + 1], add_generation_prompt=True)


@pytest.mark.parametrize("name", ALL)
@given(turns=conversations)
@settings(max_examples=60, deadline=None)
def test_a_layout_that_gives_the_text_also_gives_the_spans(tokenizers, name, turns):
    template = tokenizers[name].template
    messages = messages_of(turns)
    text, spans = render_with_spans(template, messages)
    layout = template.layout(messages)
    contents = [message["content"] for message in messages]
    if layout is not None and layout.text(contents) == text:
        trained = [
            i for i, message in enumerate(messages) if message["role"] == "assistant" and message.get("weight") != 0
        ]
        assert [(start, end) for number, start, end in layout.spans(contents) if number in trained] == spans
        opening = layout.opening_length(contents)
        if opening:
            tokenizer = tokenizers[name]
            assert tokenizer.encode(text[:opening]) + tokenizer.encode(text[opening:]) == tokenizer.encode(text)


@pytest.mark.parametrize("name", ["chatml", "llama2", "phi3"])
def test_plain_templates_have_a_layout(tokenizers, name):
    assert tokenizers[name].template.layout(messages_of([("a", "b", None), ("c", "d", 0)])) is not None


def test_earlier_thinking_that_the_template_removes_is_not_trained(tokenizers):
    template = tokenizers["thinking"].template
    turns = [("a", "<think>\nhm\n</think>\n\nfirst", None), ("b", "<think>\nho\n</think>\n\nsecond", None)]
    text, spans = render_with_spans(template, messages_of(turns))
    trained = [text[start:end] for start, end in spans]
    assert trained == ["first<|im_end|>", "<think>\nho\n</think>\n\nsecond<|im_end|>"]


def test_an_assistant_message_that_opens_a_conversation_is_trained(smollm2):
    from tunesmith.data.tokenization.tokenizer import Tokenizer

    template = Tokenizer.load(smollm2).template
    messages = [{"role": "assistant", "content": "Hello, I help."}, {"role": "user", "content": "Thanks"}]
    text, spans = render_with_spans(template, messages)
    assert [text[start:end] for start, end in spans] == ["Hello, I help.<|im_end|>"]


def test_text_that_a_template_adds_before_the_content_is_trained_unless_it_is_in_the_prompt():
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think></think>{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    )
    messages = messages_of([("a", "b", None)])
    text, spans = render_with_spans(ChatTemplate(source + "{% endif %}", special_tokens=SPECIALS), messages)
    assert [text[a:b] for a, b in spans] == ["<think></think>b<|im_end|>"]
    template = ChatTemplate(source + "<think></think>{% endif %}", special_tokens=SPECIALS)
    text, spans = render_with_spans(template, messages)
    assert [text[a:b] for a, b in spans] == ["b<|im_end|>"]


def test_the_end_of_turn_token_is_trained_if_it_is_outside_the_generation_block():
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    text, spans = render_with_spans(ChatTemplate(source, special_tokens=SPECIALS), messages_of([("a", "b", None)] * 2))
    assert [text[a:b] for a, b in spans] == ["b<|im_end|>"] * 2


REJECTED = {
    "no token closes the turn": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "learn to stop",
    ),
    "earlier turns are rewritten": (
        "{% for m in messages %}<|im_start|>{{ m.content if loop.last else m.content | length }}<|im_end|>{% endfor %}",
        "rewrites earlier turns",
    ),
    "earlier turns are omitted": (
        "{% for m in messages[-2:] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "rewrites earlier turns",
    ),
    "generation blocks for some turns only": (
        "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
        "marks 1",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_turns_that_cannot_be_located_are_rejected(case):
    source, message = REJECTED[case]
    messages = messages_of([("one", "two", None), ("three", "four", None)])
    with pytest.raises(TemplateFailure, match=message):
        render_with_spans(ChatTemplate(source, special_tokens=SPECIALS), messages)
    assert ChatTemplate(source, special_tokens=SPECIALS).layout(messages) is None


def test_rows_with_noncharacters_are_rejected(tokenizers):
    messages = messages_of([("a", "b\ufdd0", None)])
    with pytest.raises(TemplateFailure, match="noncharacters"):
        render_with_spans(tokenizers["gemma"].template, messages)


CALL = {
    "id": "abcdefgh1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 2}},
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
QUESTION, ANSWER = {"role": "user", "content": "Rain in Oslo?"}, {"role": "assistant", "content": "Yes."}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
TALKING = {"role": "assistant", "content": "Let me look that up.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "rain", "tool_call_id": "abcdefgh1"}
RENDERED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call><|im_end|>'


def trained_texts(family, messages):
    text, spans = render_with_spans(template_of(family), messages, [TOOL])
    return [text[start:end] for start, end in spans]


def test_every_turn_is_trained_if_a_template_adds_empty_thinking_to_the_last_one_only():
    assert trained_texts("qwen-3", [QUESTION, CALLING, RESULT, TALKING, RESULT, ANSWER]) == [
        RENDERED,
        f"Let me look that up.\n{RENDERED}",
        "<think>\n\n</think>\n\nYes.<|im_end|>",
    ]


def test_calls_after_thinking_that_the_template_removed_are_trained():
    thoughtful = {**CALLING, "content": "", "reasoning_content": "I look it up"}
    messages = [QUESTION, thoughtful, RESULT, thoughtful, RESULT, ANSWER, QUESTION, CALLING, RESULT, ANSWER]
    last = "<think>\n\n</think>\n\nYes.<|im_end|>"
    assert trained_texts("qwen-3", messages) == [RENDERED, RENDERED, "Yes.<|im_end|>", RENDERED, last]
    prompted = "\n</think>\n\nYes.<|im_end|>"  # here the prompt opens the thinking
    assert trained_texts("qwen-3-thinking", messages) == [RENDERED, RENDERED, "Yes.<|im_end|>", RENDERED, prompted]


def test_calls_are_trained_if_the_template_moves_the_tools_to_the_last_question():
    other = {"role": "user", "content": "And in Rome?"}
    call = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo", "days": 2}, "id": "abcdefgh1"}]</s>'
    messages = [QUESTION, CALLING, RESULT, ANSWER, other, CALLING, RESULT, ANSWER]
    assert trained_texts("mistral-v0.3", messages) == [call, " Yes.</s>"] * 2

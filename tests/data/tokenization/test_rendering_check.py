"""A chat template shows a row completely, or what it omits is named: 21 templates of 15 families."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.tokenization.families import FAMILIES, SPECIAL, template_of
from tunesmith.data.encoders.conversation import checked_rendering
from tunesmith.data.refusal import Refusal
from tunesmith.data.tokenization.assistant_spans import TemplateFailure
from tunesmith.data.tokenization.chat_template import ChatTemplate
from tunesmith.data.tokenization.probe import make_probe
from tunesmith.data.tokenization.rendering_check import OmittedFields, require_prompt_shown

TEMPLATES = {family: template_of(family) for family in FAMILIES}
CALL = {
    "id": "abcdefgh1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": 'Os"lo', "days": 2}},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
SYSTEM = {"role": "system", "content": "Answer as a pirate."}
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy."}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TALKING = {"role": "assistant", "content": "Let me look that up.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "rain", "tool_call_id": "abcdefgh1", "name": "weather"}
THINKING = {"role": "assistant", "reasoning_content": "two and two make four", "content": "4"}
INLINE = {"role": "assistant", "content": "<think>\ntwo and two make four\n</think>\n\n4"}

SHAPES = {
    "plain": ([USER, ANSWER, USER, ANSWER], None),
    "system": ([SYSTEM, USER, ANSWER], None),
    "developer": ([{**SYSTEM, "role": "developer"}, USER, ANSWER], None),
    "tools": ([USER, ANSWER], [TOOL]),
    "calls": ([USER, CALLING, RESULT, ANSWER, USER, CALLING, RESULT, ANSWER], [TOOL]),
    "ends on a call": ([USER, ANSWER, USER, CALLING], [TOOL]),
    "words with a call": ([USER, TALKING, RESULT, ANSWER], [TOOL]),
    "thinking": ([USER, THINKING], None),
    "earlier thinking": ([USER, THINKING, USER, ANSWER], None),
    "thinking in the content": ([USER, INLINE], None),
    "earlier thinking in the content": ([USER, INLINE, USER, ANSWER], None),
}
NO_TOOLS = {"tools": "tools", "calls": "tool calls, tool messages, tools", "ends on a call": "tool calls, tools"}
NO_TOOLS |= {"words with a call": NO_TOOLS["calls"]}
NO_TOOLS_BUT_ROLES = NO_TOOLS | dict.fromkeys(("calls", "words with a call"), "tool calls, tools")
NO_THINKING = {"thinking": "thinking", "earlier thinking": "thinking"}
NO_DEVELOPER = {"developer": "developer messages"}
ALTERNATING = {
    "developer": "!Conversation roles must alternate",
    "tools": "tools",
    "calls": "!Conversation roles must alternate",
    "ends on a call": "tool calls, tools",
    "words with a call": "!Conversation roles must alternate",
} | NO_THINKING
LLAMA_3 = {"words with a call": "content"} | NO_THINKING
MISTRAL = {"developer": "!Only user and assistant roles", "system": "generation prompt, system messages"} | LLAMA_3
QWEN_3 = NO_DEVELOPER | {"earlier thinking": "-thinking", "earlier thinking in the content": "-thinking"}
PROMPTED = {
    "developer": "developer messages, generation prompt",
    **{
        shape: f"generation prompt, {kinds}"
        for shape, kinds in (NO_TOOLS | {"thinking": "thinking", "earlier thinking": "thinking"}).items()
    },
    "thinking in the content": "generation prompt, thinking",
}
# What is omitted, by shape: kinds in alphabetical order; "-": counted only; "!": the template's own words.
EXPECTED: dict[str, dict[str, str]] = {
    "chatml": NO_TOOLS_BUT_ROLES | NO_THINKING,
    "zephyr": NO_TOOLS | NO_THINKING | NO_DEVELOPER,
    "llama-2": ALTERNATING,
    "llama-3.1": LLAMA_3,
    "llama-3.2": LLAMA_3,
    "mistral-v0.3": MISTRAL,
    "mistral-nemo": MISTRAL,
    "qwen-2.5": NO_DEVELOPER | NO_THINKING,
    "qwen-3": QWEN_3,
    "qwen-3-thinking": QWEN_3,
    "gemma-2": ALTERNATING | {"system": "!System role not supported"},
    "gemma-3": ALTERNATING,
    "phi-3": NO_TOOLS | NO_THINKING | NO_DEVELOPER | {"system": "system messages"},
    "phi-4": NO_TOOLS | NO_THINKING | NO_DEVELOPER,
    "phi-4-mini": NO_TOOLS_BUT_ROLES | NO_THINKING,
    "deepseek-r1": dict.fromkeys(SHAPES, "generation prompt") | PROMPTED,
    "deepseek-v3.1": NO_TOOLS
    | NO_THINKING
    | NO_DEVELOPER
    | {"thinking in the content": "thinking", "earlier thinking in the content": "-thinking"},
    "smollm-2": NO_TOOLS_BUT_ROLES | NO_THINKING,
    "smollm-3": NO_THINKING
    | NO_DEVELOPER
    | dict.fromkeys(("calls", "ends on a call", "words with a call"), "tool calls"),
    "granite": NO_THINKING | dict.fromkeys(("calls", "ends on a call", "words with a call"), "tool calls"),
    "command-r": ALTERNATING,
}


def outcome_of(template: ChatTemplate, messages, tools) -> str:
    try:
        rendering = checked_rendering(template, messages, tools, rejects=True)
    except OmittedFields as refusal:
        return ", ".join(sorted({omission.kind for omission in refusal.omissions}))
    except Refusal as refusal:
        return f"!{refusal.reason}"
    return "".join(f"-{kind}" for kind in sorted({omission.kind for omission in rendering.omissions}))


def test_every_family_has_its_expectations():
    assert list(EXPECTED) == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_of_templates_omits_is_named(family):
    for shape, (messages, tools) in SHAPES.items():
        outcome, expected = outcome_of(TEMPLATES[family], messages, tools), EXPECTED[family].get(shape, "")
        if expected.startswith("!"):
            assert outcome.startswith(f"!the chat template cannot render this row: {expected[1:]}"), shape
        else:
            assert outcome == expected, shape


# --- Any conversation ------------------------------------------------------------------------------------------------

tricky = st.sampled_from(["", " ", "\n", 'quote " ', "back\\slash ", "naïve 😀 ", "<b>", "{{ x }} "])


@st.composite
def conversations(draw):
    """(messages, tools, the word of each value, by the place that a message names for it)"""
    words: dict[str, str] = {}

    def value(place: str) -> str:
        words[place] = f"word{len(words)}end"
        return draw(tricky) + words[place] + draw(tricky)

    messages, tools = [], None
    opening = draw(st.sampled_from([None, "system", "developer"]))
    if opening:
        messages.append({"role": opening, "content": value("messages[0].content")})
    if draw(st.booleans()):
        property_ = {"type": "string", "description": value("tools")}
        parameters = {"type": "object", "properties": {value("tools "): property_}}
        tools = [{"type": "function", "function": {"name": value("tools  "), "parameters": parameters}}]
    for _ in range(draw(st.integers(1, 2))):
        messages.append({"role": "user", "content": value(f"messages[{len(messages)}].content")})
        for call in range(draw(st.integers(0, 2 if tools else 0))):
            at = f"messages[{len(messages)}]"
            identity = f"call{len(messages):04}{call}"
            function = {"name": value(f"{at}.tool_calls"), "arguments": {"x": value(f"{at}.tool_calls ")}}
            message = {"role": "assistant", "content": value(f"{at}.content") if draw(st.booleans()) else ""}
            if draw(st.booleans()):
                message["reasoning_content"] = value(f"{at}.reasoning_content")
            messages.append({**message, "tool_calls": [{"id": identity, "type": "function", "function": function}]})
            result = {"role": "tool", "tool_call_id": identity, "content": value(f"messages[{len(messages)}].content")}
            messages.append(result)
        at = f"messages[{len(messages)}]"
        inline = f"<think>\n{value(f'the thinking in {at}.content')}\n</think>\n\n" if draw(st.booleans()) else ""
        message = {"role": "assistant", "content": inline + value(f"{at}.content")}
        if not inline and draw(st.booleans()):
            message["reasoning_content"] = value(f"{at}.reasoning_content")
        messages.append(message)
    return messages, tools, words


@pytest.mark.parametrize("part", range(3))
@given(conversation=conversations())
@settings(max_examples=12, deadline=None)
def test_a_row_is_rendered_completely_or_the_omitted_value_is_named(part, conversation):
    messages, tools, words = conversation
    for family in list(FAMILIES)[part::3]:
        template = TEMPLATES[family]
        try:
            rendering = checked_rendering(template, messages, tools, rejects=True)
        except OmittedFields:
            named, text = template.omissions(messages, tools), template.render(messages, tools)
        except TemplateFailure:
            with pytest.raises(TemplateFailure, match="cannot render this row"):
                template.render(messages, tools)
            continue
        else:
            named, text = rendering.omissions, rendering.text
            for number, start, end in rendering.turns:
                own = {place: word for place, word in words.items() if f"messages[{number}]." in place}
                assert not [word for word in own.values() if word in text and word not in text[start:end]]
        places = [omission.place.split(" (")[0] for omission in named]
        missing = {place.strip() for place, word in words.items() if word not in text}
        assert missing <= set(places), (family, text)
        unexpected = set(places) - missing
        assert not [place for place in unexpected if "generation prompt" not in place], (family, text)


# --- Single templates ------------------------------------------------------------------------------------------------

BODY = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def templated(source: str) -> ChatTemplate:
    return ChatTemplate(source, special_tokens=SPECIAL, where="/models/some-model/chat_template.jinja")


CONDITIONAL = {
    "developer as system": (
        "{% for m in messages %}<|im_start|>{{ 'system' if m.role == 'developer' else m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endfor %}",
        [{**SYSTEM, "role": "developer"}, USER, ANSWER],
        None,
        "",
    ),
    "a later system message is skipped": (
        "{% for m in messages %}{% if m.role != 'system' or loop.first %}" + BODY + "{% endif %}{% endfor %}",
        [SYSTEM, USER, ANSWER, SYSTEM, USER, ANSWER],
        None,
        "messages[3].content (system)",
    ),
    "names of tools only": (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages %}" + BODY + "{% endfor %}",
        [USER, ANSWER],
        [TOOL],
        "tools[0].function.",
    ),
    "the first call only": (
        "{{ tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function | tojson }}{% endif %}<|im_end|>\n{% endfor %}",
        [USER, {**CALLING, "tool_calls": [CALL, CALL]}, RESULT, ANSWER],
        [TOOL],
        "messages[1].tool_calls[1].name (assistant)",
    ),
    "sorted and escaped arguments": (
        "{{ tools | tojson(ensure_ascii=true, sort_keys=true) }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content | trim | tojson(ensure_ascii=true) }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
        "{{ c.function.arguments | dictsort | string }}{% endfor %}<|im_end|>\n{% endfor %}",
        [USER, {**CALLING, "content": " ü\n"}, RESULT, ANSWER],
        [TOOL],
        "",
    ),
    "an answer in another turn": (
        "<|im_start|>{{ messages[-1].content }}{% for m in messages[:-1] %}"
        + BODY
        + "{% endfor %}<|im_start|>a<|im_end|>",
        [USER, ANSWER],
        None,
        "messages[0].content (user)",
    ),
    "names of participants": (
        "{% for m in messages %}" + BODY + "{% endfor %}",
        [{**USER, "name": "Ann"}, ANSWER],
        None,
        "-messages[0].name (user)",
    ),
    "thinking under two names": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.thinking }}{{ m.content }}<|im_end|>\n{% endfor %}",
        [USER, {**ANSWER, "thinking": "hm", "reasoning_content": "hm"}],
        None,
        "",
    ),
}


@pytest.mark.parametrize("case", CONDITIONAL)
def test_conditional_templates(case):
    source, messages, tools, place = CONDITIONAL[case]
    template = templated(source + END)
    if not place or place.startswith("-"):
        counted = checked_rendering(template, messages, tools, rejects=True).omissions
        assert [f"-{omission.place}" for omission in counted] == ([place] if place else [])
        return
    with pytest.raises(OmittedFields) as raised:
        checked_rendering(template, messages, tools, rejects=True)
    assert raised.value.reason.startswith("the chat template some-model/chat_template.jinja omits ")
    assert place in raised.value.reason
    assert "data.omitted_fields: keep" in raised.value.remedy


def test_rows_of_the_same_shape_are_checked_once():
    row = [SYSTEM, USER, {**TALKING, "reasoning_content": "hm"}, RESULT, ANSWER]
    text = json.dumps([row, [TOOL]])
    other = json.loads(text.replace("Os", "L ").replace("rain", "<think> & sun").replace("abcdefgh1", "XYZ4w9lq7"))
    assert other[0] != row
    assert make_probe(row, [TOOL]).key() == make_probe(*other).key()
    longer = json.loads(text.replace('"days": 2', '"days": [2, 3]'))
    assert make_probe(row, [TOOL]).key() != make_probe(*longer).key()


@pytest.mark.parametrize(
    ("family", "conversation", "tools", "place"),
    [
        ("phi-3", [SYSTEM, USER], None, "messages[0].content (system)"),
        ("qwen-3", [{**SYSTEM, "role": "developer"}, USER], None, "messages[0].content (developer)"),
        ("chatml", [USER], [TOOL], "tools"),
        ("llama-3.1", [USER, TALKING, RESULT], [TOOL], "messages[1].content (assistant)"),
        ("mistral-v0.3", [SYSTEM, USER], None, None),
        ("chatml", [USER, THINKING, {**USER, "name": "Ann"}], None, None),
        ("deepseek-r1", [USER], None, None),
    ],
)
def test_requests_for_an_answer_are_checked_likewise(family, conversation, tools, place):
    """But not for what clients return with earlier messages."""
    check: Callable[[], None] = lambda: require_prompt_shown(TEMPLATES[family], conversation, tools)  # noqa: E731
    if place is None:
        check()
    else:
        with pytest.raises(OmittedFields) as raised:
            check()
        assert f"{family} omits {place}" in raised.value.reason

"""Where an assistant turn ends, and which tokens frame messages: found by comparing renderings."""

import pytest

from tests.data.conftest import LLAMA3
from tests.data.spans import render_with_spans
from tunesmith.data.tokenization.assistant_spans import TemplateFailure
from tunesmith.data.tokenization.chat_template import ChatTemplate

CHATML = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>", "</s>"]
HEADERS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]
DEEPSEEK = ["<BOS>", "<EOS>", "<User>", "<Assistant>", "<think>", "</think>"]

# Print the generation prompt whether asked or not, as the template of Llama 3's first release.
LLAMA3_ALWAYS = LLAMA3.replace("{% if add_generation_prompt %}", "").replace("\n\n' }}{% endif %}", "\n\n' }}")
CHATML_ALWAYS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
DEFAULT_SYSTEM_ALWAYS = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}" + CHATML_ALWAYS
)
DEEPSEEK_ALWAYS = (
    "<BOS>{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content }}{% elif m.role == 'assistant' %}"
    "<Assistant>{{ m.content }}<EOS>{% endif %}{% endfor %}<Assistant>"
)
ALWAYS = {
    "llama3": (LLAMA3_ALWAYS, HEADERS, "<|eot_id|>"),
    "chatml": (CHATML_ALWAYS, CHATML, "<|im_end|>"),
    "default system": (DEFAULT_SYSTEM_ALWAYS, CHATML, "<|im_end|>"),
    "deepseek": (DEEPSEEK_ALWAYS, DEEPSEEK, "<EOS>"),
    "two tokens": (CHATML_ALWAYS.replace("<|im_end|>\n", "<|im_end|></s>\n"), CHATML, "<|im_end|></s>"),
}
TALK = [
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "By the river."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "Now."},
]


def trained(template: ChatTemplate, messages, tools=None) -> list[str]:
    text, spans = render_with_spans(template, messages, tools)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize("name", ALWAYS)
def test_the_header_of_the_next_answer_is_not_trained_if_the_template_always_appends_it(name):
    source, tokens, end = ALWAYS[name]
    template = ChatTemplate(source, special_tokens=tokens)
    assert trained(template, TALK) == [f"By the river.{end}", f"Now.{end}"]
    assert trained(template, TALK[:2]) == [f"By the river.{end}"]
    assert end.endswith(template.end_of_turn)
    assert template.closing_tokens == (template.end_of_turn,)


CALL = {"role": "assistant", "content": "Let me look.", "tool_calls": [{"function": {"name": "find", "arguments": {}}}]}
CALLING = """\
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' and (THINKS) %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
    {{- m.content or '' }}
    {%- for call in m.tool_calls or [] %}
        {{- '\n<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
LOOKUP = [TALK[0], CALL, {"role": "tool", "content": "river"}, TALK[1]]
WHOLE_CALL = '\n<tool_call>\n{"name": "find", "arguments": {}}\n</tool_call><|im_end|>'
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def test_a_special_token_after_the_words_is_not_the_end_of_the_turn():
    # The thoughts are printed in the last turn only, so an earlier turn is not a prefix of the conversation.
    template = ChatTemplate(CALLING.replace("THINKS", "loop.last"), special_tokens=CHATML)
    assert trained(template, LOOKUP) == ["Let me look." + WHOLE_CALL, EMPTY_THOUGHT + "By the river.<|im_end|>"]
    assert trained(template, LOOKUP[:2]) == [EMPTY_THOUGHT + "Let me look." + WHOLE_CALL]
    assert template.closing_tokens == ("<|im_end|>",)


@pytest.mark.parametrize("content", ["", None])
def test_a_call_without_words_in_an_earlier_turn_is_trained(content):
    template = ChatTemplate(CALLING.replace("THINKS", "loop.last"), special_tokens=CHATML)
    messages = [LOOKUP[0], {**CALL, "content": content}, *LOOKUP[2:]]
    assert trained(template, messages) == [WHOLE_CALL, EMPTY_THOUGHT + "By the river.<|im_end|>"]


def test_a_call_after_a_generation_block_is_not_the_end_of_the_turn():
    source = CALLING.replace("THINKS", "false").replace(
        "{{- m.content or '' }}",
        "{%- if m.role == 'assistant' %}{% generation %}{{- m.content }}{% endgeneration %}"
        "{% else %}{{- m.content }}{% endif %}",
    )
    template = ChatTemplate(source, special_tokens=CHATML)
    assert trained(template, TALK) == ["By the river.<|im_end|>", "Now.<|im_end|>"]
    messages = [TALK[0], {**CALL, "content": "Let me look."}]
    with pytest.raises(TemplateFailure, match="learn to stop"):
        render_with_spans(
            ChatTemplate(source.replace("'\n<tool_call>", "'<tool_call>"), special_tokens=CHATML), messages
        )


def test_both_tokens_end_an_answer_if_the_last_turn_ends_differently():
    source = (
        "<|start|>system<|message|>Help.<|end|>{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
    )
    tokens = ["<|start|>", "<|message|>", "<|end|>", "<|return|>"]
    template = ChatTemplate(source, special_tokens=tokens)
    assert trained(template, TALK) == ["By the river.<|end|>", "Now.<|return|>"]
    assert template.closing_tokens == ("<|return|>", "<|end|>")


def test_an_earlier_turn_without_an_end_is_rejected():
    source = (
        "{% for m in messages %}{{ '<s>' + m.role + ' ' + m.content }}{% if loop.last %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant {% endif %}"
    )
    template = ChatTemplate(source, "<s>", "</s>", special_tokens=["<s>", "</s>"])
    assert trained(template, TALK[:2]) == ["By the river.</s>"]
    assert template.closing_tokens == ("</s>",)
    with pytest.raises(TemplateFailure, match="learn to stop"):
        render_with_spans(template, TALK)


FRAMING = {
    "chatml": {"<|im_start|>", "<|im_end|>"},
    "llama2": {"<s>", "</s>", "[INST]", "[/INST]"},
    "llama3": {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
    "gemma": {"<s>", "<start_of_turn>", "<end_of_turn>"},
    "phi3": {"<|user|>", "<|assistant|>", "<|end|>"},
}


@pytest.mark.parametrize("name", FRAMING)
def test_framing_tokens_of_families(tokenizers, name):
    assert tokenizers[name].template.framing_tokens - {"<s>", "</s>"} == FRAMING[name] - {"<s>", "</s>"}


@pytest.mark.parametrize("thinks", ["loop.last", "true", "false"])
def test_markers_of_thoughts_and_calls_are_not_framing(thinks):
    template = ChatTemplate(CALLING.replace("THINKS", thinks), special_tokens=CHATML)
    assert template.framing_tokens == {"<|im_start|>", "<|im_end|>"}
    in_header = CHATML_ALWAYS.replace("assistant", "assistant\n<think>")
    assert "<think>" not in ChatTemplate(in_header, special_tokens=CHATML).framing_tokens
    in_header = DEEPSEEK_ALWAYS.replace("<Assistant>", "<Assistant><think>")
    assert ChatTemplate(in_header, special_tokens=DEEPSEEK).framing_tokens == set(DEEPSEEK[:4])

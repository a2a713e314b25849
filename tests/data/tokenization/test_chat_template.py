"""Chat templates render the same text as transformers' apply_chat_template."""

import pytest

from tunesmith.data.tokenization.assistant_spans import TemplateFailure
from tunesmith.data.tokenization.chat_template import ChatTemplate
from tunesmith.data.tokenization.tokenizer import Tokenizer

USER, ASSISTANT = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "zwö<lf"}}}
CONVERSATIONS = [
    [USER],
    [USER, ASSISTANT],
    [{"role": "user", "content": "  \n spaces \n"}, {"role": "assistant", "content": "\n\n trailing \n"}],
    [USER, ASSISTANT, {"role": "user", "content": "and 3 + 3? 😀"}, {"role": "assistant", "content": "6"}],
]
RICH = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>' }}{% endif %}
{% for message in messages %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
<|im_start|>{{ message.role }}
{{ message.content if message.content is defined }}
    {%- for call in message.tool_calls or [] %}{{- call.function | tojson(indent=2) }}{%- endfor %}
    {%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
<|im_end|>
{% endfor %}
{{- dict(a=1).a }}{{ bos_token }}{{ strftime_now('%Y') }}{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}
"""


def oracle_of(directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("name", ["chatml", "marked", "llama2", "llama3", "gemma", "phi3", "thinking"])
def test_text_and_tokens_equal_those_of_transformers(tokenizers, name):
    own = tokenizers[name]
    oracle = oracle_of(own.directory)
    for messages in CONVERSATIONS:
        for prompt in (False, True):
            text = own.template.render(messages, add_generation_prompt=prompt)
            assert text == oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            tokens = oracle.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"]
            assert own.encode(text) == tokens


def test_smollm2_equals_transformers(smollm2):
    own, oracle = Tokenizer.load(smollm2), oracle_of(smollm2)
    for messages in [*CONVERSATIONS, [{"role": "system", "content": "Be short."}, USER, ASSISTANT]]:
        for prompt in (False, True):
            text = own.template.render(messages, add_generation_prompt=prompt)
            assert text == oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)


def test_tools_nulls_reasoning_and_template_functions_equal_those_of_transformers(make_tokenizer_directory):
    directory = make_tokenizer_directory(RICH)
    own, oracle = Tokenizer.load(directory), oracle_of(directory)
    tools = [{"type": "function", "function": {"name": "add", "description": "adds <two> numbers"}}]
    messages = [
        {"role": "skip", "content": "never shown"},
        {"role": "user", "content": "add", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
        {"role": "assistant", "content": "4", "thinking": "2 + 2"},
    ]
    for options in (None, tools):
        text = own.template.render(messages, options)
        assert text == oracle.apply_chat_template(messages, tools=options, tokenize=False)
    assert '"b": "zwö<lf"' in text
    assert "<think>2 + 2</think>" in text


def test_weights_are_not_passed_to_the_template():
    template = ChatTemplate("{% for m in messages %}{{ m | tojson }}{% endfor %}")
    assert (
        template.render([{"role": "assistant", "content": "a", "weight": 0}]) == '{"role": "assistant", "content": "a"}'
    )


def test_the_tool_template_is_used_for_rows_with_tools():
    template = ChatTemplate("plain", tool_source="with tools")
    assert template.render([USER]) == "plain"
    assert template.render([USER], [CALL]) == "with tools"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['content'] + messages[0]['nothing'] }}", "nothing"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages.__class__.__mro__ }}", "__class__"),
        ("{{ messages.append(1) }}", "append"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", "_x"),
    ],
)
def test_a_template_error_is_a_template_failure_with_its_message(source, message):
    with pytest.raises(TemplateFailure, match="cannot render this row") as caught:
        ChatTemplate(source).render([USER])
    assert message in caught.value.reason


def test_the_date_in_a_template_is_the_same_for_all_rows():
    template = ChatTemplate("{{ strftime_now('%d %b %Y %H:%M') }}")
    assert template.today is not None
    assert template.render([USER]).endswith("00:00")
    assert ChatTemplate("no date").today is None


def test_the_end_of_turn_token_is_detected(tokenizers, end_of_turn):
    assert {name: tokenizer.template.end_of_turn for name, tokenizer in tokenizers.items()} == end_of_turn

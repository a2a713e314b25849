"""Thinking and template variables in chat requests: a model with random weights, whose prompt opens the thinking."""

import json
import shutil
from collections.abc import Iterator

import openai
import pytest

THINKING_TEMPLATE = (
    "{% if effort is defined %}<|im_start|>system\n{{ effort }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ (message['content'] or '') + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
REQUEST = {
    "model": "base",
    "messages": [{"role": "user", "content": "hello"}],
    "max_completion_tokens": 12,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def client(serve, tiny_llama, tmp_path_factory) -> Iterator[openai.OpenAI]:
    directory = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("thinking") / "tiny")
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": THINKING_TEMPLATE}))
    with serve({"base": (directory, None)}) as running:
        yield running.client()


def streamed(client, **options) -> tuple[str, str, openai.types.CompletionUsage | None]:
    """(thinking, content, usage) of a streamed response."""
    thinking, content, usage = "", "", None
    chunks = client.chat.completions.create(**REQUEST, **options, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        if chunk.choices:
            thinking += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
            content += chunk.choices[0].delta.content or ""
        usage = chunk.usage
    return thinking, content, usage


def test_thinking_is_separate_from_the_content(client):
    response = client.chat.completions.create(**REQUEST)
    message, usage = response.choices[0].message, response.usage
    assert message.reasoning_content  # the random model does not end its thinking
    assert message.content == ""
    assert usage.completion_tokens_details.reasoning_tokens == usage.completion_tokens > 0
    assert streamed(client) == (message.reasoning_content, "", usage)


def test_a_template_variable_closes_the_thinking(client):
    response = client.chat.completions.create(**REQUEST, extra_body=OFF)
    message = response.choices[0].message
    assert message.content
    assert not hasattr(message, "reasoning_content")
    assert response.usage.completion_tokens_details.reasoning_tokens == 0
    assert response.usage.prompt_tokens > client.chat.completions.create(**REQUEST).usage.prompt_tokens
    assert streamed(client, extra_body=OFF) == ("", message.content, response.usage)


@pytest.mark.parametrize(
    ("values", "name", "message"),
    [
        ({"enable_thinkin": True}, "enable_thinkin", "did you mean 'enable_thinking'"),
        ({"messages": []}, "messages", "reserved"),
        ({"a-b": 1}, "a-b", "reserved"),
    ],
)
def test_a_variable_that_the_template_does_not_read_is_rejected(client, values, name, message):
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        client.chat.completions.create(**REQUEST, extra_body={"chat_template_kwargs": values})
    assert raised.value.param == f"chat_template_kwargs.{name}"


def test_structured_output_is_content(client):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    response = client.chat.completions.create(**{**REQUEST, "max_completion_tokens": 64}, response_format=form)
    assert json.loads(response.choices[0].message.content)["a"] in (1, 2)


def test_thinking_of_earlier_messages_is_rendered(client):
    answer = {"role": "assistant", "content": "4", "reasoning_content": "two and two make four"}
    lengths = []
    for earlier in (answer, {**answer, "reasoning_content": None}):
        messages = [*REQUEST["messages"], earlier, *REQUEST["messages"]]
        lengths.append(client.chat.completions.create(**{**REQUEST, "messages": messages}).usage.prompt_tokens)
    assert lengths[0] > lengths[1]

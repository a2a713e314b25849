"""Text completions with the real client."""

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.data.tokenization.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def client(served) -> openai.OpenAI:
    return served.client()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.load(tiny_llama)


def complete(client, prompt, **options):
    options = {"model": "ft-all", "max_tokens": 10, "temperature": 0, **options}
    return client.completions.create(prompt=prompt, **options)


def test_all_prompt_types_are_accepted(client, tokenizer):
    texts = ["The licence", "You may copy"]
    tokens = [tokenizer.encode(text) for text in texts]
    assert len(tokens[0]) != len(tokens[1])
    single = [complete(client, text).choices[0].text for text in texts]
    assert len(set(single)) == 2
    for prompt in (texts, tokens):
        response = complete(client, prompt, n=2)
        assert [choice.index for choice in response.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in response.choices] == [single[0], single[0], single[1], single[1]]
        assert response.usage.prompt_tokens == sum(map(len, tokens))
        assert response.usage.completion_tokens == 40
    assert complete(client, tokens[0]).choices[0].text == single[0]
    assert response.object == "text_completion"
    assert response.id.startswith("cmpl-")


def test_max_tokens_defaults_to_16(client):
    response = client.completions.create(model="ft-all", prompt="The licence", temperature=0)
    assert response.usage.completion_tokens == 16
    assert response.choices[0].finish_reason == "length"


def test_a_stream_equals_the_response(client):
    whole = complete(client, ["The licence", "You may"], logprobs=1, echo=True)
    stream = complete(
        client, ["The licence", "You may"], logprobs=1, echo=True, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        parts = [part for chunk in chunks[:-1] for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        streamed = {
            name: [one for part in parts for one in getattr(part.logprobs, name)]
            for name in ("tokens", "text_offset", "token_logprobs")
        }
        assert streamed["tokens"] == choice.logprobs.tokens
        assert streamed["text_offset"] == choice.logprobs.text_offset
        assert streamed["token_logprobs"][0] is choice.logprobs.token_logprobs[0] is None
        assert streamed["token_logprobs"][1:] == pytest.approx(choice.logprobs.token_logprobs[1:], abs=1e-4)
        assert parts[-1].finish_reason == choice.finish_reason


def test_echo_returns_the_logprobs_of_the_prompt(client, tokenizer, tiny_llama):
    text = "You may reproduce and distribute copies of the Work " * 20  # more rows than one step processes
    tokens = tokenizer.encode(text)
    assert len(tokens) > 300
    response = complete(client, text, model="base", echo=True, logprobs=3, max_tokens=0)
    choice = response.choices[0]
    assert choice.text == text
    assert response.usage.completion_tokens == 0
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    logprobs = choice.logprobs
    assert logprobs.token_logprobs[0] is None
    assert logprobs.tokens == [tokenizer.token_text(token) for token in tokens]
    following = expected[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    assert logprobs.token_logprobs[1:] == pytest.approx(following.tolist(), abs=1e-4)
    assert list(logprobs.top_logprobs[5].values()) == pytest.approx(expected[4].topk(3).values.tolist(), abs=1e-4)
    assert logprobs.text_offset[:3] == [0, len(logprobs.tokens[0]), len(logprobs.tokens[0] + logprobs.tokens[1])]
    continued = complete(client, text, model="base", echo=True, logprobs=0, max_tokens=4)
    assert continued.choices[0].text.startswith(text)
    assert len(continued.choices[0].logprobs.tokens) == len(tokens) + 4


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 128, "prompt": ["a", "b"]}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [5, 999999]}, None),
        ({"prompt": []}, "prompt"),
        ({"logprobs": 30}, "logprobs"),
    ],
)
def test_unsupported_parameters_are_rejected_by_name(client, options, param):
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(**{"model": "base", "prompt": "hello", **options})
    assert (raised.value.param or "").split(".")[0] == (param or "")

"""Plain completions through the real client."""

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


def continued(client, prompt, **options):
    options = {"model": "ft-all", "max_tokens": 10, "temperature": 0, **options}
    return client.completions.create(prompt=prompt, **options)


def test_every_form_of_prompt(client, tokenizer):
    texts = ["The licence", "You may copy"]
    tokens = [tokenizer.encode(text) for text in texts]
    assert len(tokens[0]) != len(tokens[1])
    single = [continued(client, text).choices[0].text for text in texts]
    assert len(set(single)) == 2
    for prompt in (texts, tokens):
        answer = continued(client, prompt, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in answer.choices] == [single[0], single[0], single[1], single[1]]
        assert answer.usage.prompt_tokens == sum(map(len, tokens))
        assert answer.usage.completion_tokens == 40
    assert continued(client, tokens[0]).choices[0].text == single[0]
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")


def test_sixteen_tokens_unless_told_otherwise(client):
    answer = client.completions.create(model="ft-all", prompt="The licence", temperature=0)
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_a_stream_gives_the_same_text(client):
    whole = continued(client, ["The licence", "You may"], logprobs=1, echo=True)
    stream = continued(
        client, ["The licence", "You may"], logprobs=1, echo=True, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        parts = [part for chunk in chunks[:-1] for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        told = {
            name: [one for part in parts for one in getattr(part.logprobs, name)]
            for name in ("tokens", "text_offset", "token_logprobs")
        }
        assert told["tokens"] == choice.logprobs.tokens
        assert told["text_offset"] == choice.logprobs.text_offset
        assert told["token_logprobs"][0] is choice.logprobs.token_logprobs[0] is None
        assert told["token_logprobs"][1:] == pytest.approx(choice.logprobs.token_logprobs[1:], abs=1e-4)
        assert parts[-1].finish_reason == choice.finish_reason


def test_echo_tells_the_logprobs_of_the_prompt(client, tokenizer, tiny_llama):
    text = "You may reproduce and distribute copies of the Work " * 20  # more rows than one step reads
    tokens = tokenizer.encode(text)
    assert len(tokens) > 300
    answer = continued(client, text, model="base", echo=True, logprobs=3, max_tokens=0)
    choice = answer.choices[0]
    assert choice.text == text
    assert answer.usage.completion_tokens == 0
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    told = choice.logprobs
    assert told.token_logprobs[0] is None
    assert told.tokens == [tokenizer.token_text(token) for token in tokens]
    following = wanted[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    assert told.token_logprobs[1:] == pytest.approx(following.tolist(), abs=1e-4)
    assert list(told.top_logprobs[5].values()) == pytest.approx(wanted[4].topk(3).values.tolist(), abs=1e-4)
    assert told.text_offset[:3] == [0, len(told.tokens[0]), len(told.tokens[0] + told.tokens[1])]
    followed = continued(client, text, model="base", echo=True, logprobs=0, max_tokens=4)
    assert followed.choices[0].text.startswith(text)
    assert len(followed.choices[0].logprobs.tokens) == len(tokens) + 4


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
def test_what_is_not_supported_is_refused_by_name(client, options, param):
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(**{"model": "base", "prompt": "hello", **options})
    assert (raised.value.param or "").split(".")[0] == (param or "")

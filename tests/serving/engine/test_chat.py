"""Chat completions with the real client: responses, streaming, sampling, log-probabilities, errors."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.rendering import render_prompt


def user_message(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def client(served) -> openai.OpenAI:
    return served.client()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Tokenizer:
    return Tokenizer.load(tiny_llama)


def plain_model(base, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return (PeftModel.from_pretrained(model, str(adapter)) if adapter else model).eval()


def greedy(client, model: str, text: str, **options):
    options = {"max_completion_tokens": 24, "temperature": 0, **options}
    return client.chat.completions.create(model=model, messages=user_message(text), **options)


def test_greedy_responses_equal_transformers_and_peft(client, models, tokenizer):
    contents = set()
    for name, (base, adapter) in models.items():
        model = plain_model(base, adapter)
        for text in ("hello", "A longer question about the licence of this work?"):
            prompt = render_prompt(base, user_message(text), None)
            expected = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=list(tokenizer.stop_token_ids),
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
            stopped = expected[-1] in tokenizer.stop_token_ids
            expected = [token for token in expected if token not in tokenizer.stop_token_ids]
            response = greedy(client, name, text)
            assert response.choices[0].message.content == tokenizer.decode(expected)
            assert response.choices[0].finish_reason == ("stop" if stopped else "length")
            assert response.usage.model_dump(exclude_none=True) == {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(expected),
                "total_tokens": len(prompt) + len(expected),
            }
            contents.add(response.choices[0].message.content)
    assert len(contents) > 4


def test_a_response_has_the_fields_of_the_api(client):
    response = greedy(client, "base", "hello")
    assert response.id.startswith("chatcmpl-")
    assert (response.object, response.model) == ("chat.completion", "base")
    choice = response.choices[0]
    assert (choice.index, choice.message.role, choice.message.tool_calls, choice.logprobs) == (
        0,
        "assistant",
        None,
        None,
    )


def test_a_stream_equals_the_response_with_role_first_and_usage_last(client):
    whole = greedy(client, "ft-all", "hello", n=2)
    chunks = list(greedy(client, "ft-all", "hello", n=2, stream=True, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", "assistant"]
    assert [chunk.choices[0].delta.content for chunk in chunks[:2]] == ["", ""]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for choice in whole.choices:
        parts = [part for chunk in chunks[:-1] for part in chunk.choices if part.index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
        assert len(parts) > 6
    plain = list(greedy(client, "ft-all", "hello", stream=True))
    assert plain[-1].choices
    assert all(chunk.usage is None for chunk in plain)


def test_stop_strings_end_the_response_and_are_not_output(client):
    whole = greedy(client, "ft-all", "hello").choices[0].message.content
    stop = whole[5:9]
    cut = whole.find(stop)
    response = greedy(client, "ft-all", "hello", stop=[stop, "never"])
    assert response.choices[0].message.content == whole[:cut]
    assert response.choices[0].finish_reason == "stop"
    shown = ""
    for chunk in greedy(client, "ft-all", "hello", stop=stop, stream=True):
        shown += chunk.choices[0].delta.content or ""
        assert whole[:cut].startswith(shown)
    assert shown == whole[:cut]


def test_seeds_are_reproducible_with_concurrent_requests(client):
    def sample(seed, **options):
        options = {"temperature": 1.2, "top_p": 0.95, "seed": seed, "max_completion_tokens": 20, **options}
        return [
            choice.message.content
            for choice in client.chat.completions.create(
                model="ft-all", messages=user_message("dice"), **options
            ).choices
        ]

    alone = [sample(seed) for seed in range(8)]
    assert len({tuple(one) for one in alone}) == 8
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(sample, range(8))) == alone
    several = sample(3, n=3)
    assert several[0] == alone[3][0]
    assert len(set(several)) == 3
    unseeded = {tuple(sample(None)) for _ in range(4)}
    assert len(unseeded) > 1


@pytest.mark.parametrize("model", ["base", "ft-all", "ft-scaled"])
def test_logprobs_equal_transformers(client, models, tokenizer, model):
    base, adapter = models[model]
    prompt = render_prompt(base, user_message("numbers"), None)
    texts = [tokenizer.token_text(token) for token in range(tokenizer.vocab_size)]
    ambiguous = {str(token): -100 for token, text in enumerate(texts) if texts.count(text) > 1}
    options = {"logprobs": True, "top_logprobs": 5, "max_completion_tokens": 12, "temperature": 0.7, "seed": 1}
    options["logit_bias"] = ambiguous  # so that every token is identified by its text
    response = greedy(client, model, "numbers", **options)
    logprobs = response.choices[0].logprobs.content
    assert len(logprobs) == response.usage.completion_tokens > 3
    tokens = [texts.index(one.token) for one in logprobs]
    with torch.no_grad():
        logits = plain_model(base, adapter)(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    for one, token, expected in zip(logprobs, tokens, logits.log_softmax(-1), strict=True):
        assert one.logprob == pytest.approx(float(expected[token]), abs=1e-4)
        values, ids = expected.topk(5)
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)
        assert [top.token for top in one.top_logprobs] == [tokenizer.token_text(number) for number in ids.tolist()]
        assert one.bytes is None or bytes(one.bytes).decode() == one.token
    streamed = []
    for chunk in greedy(client, model, "numbers", stream=True, **options):
        streamed += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert [one.token for one in streamed] == [one.token for one in logprobs]


def test_biases_and_penalties_change_the_output(client, tokenizer):
    (token,) = tokenizer.encode("A")
    forced = greedy(client, "base", "hello", logit_bias={str(token): 100}, max_completion_tokens=5)
    assert forced.choices[0].message.content == "AAAAA"
    penalized = greedy(
        client, "base", "hello", logit_bias={str(token): 100}, frequency_penalty=2, max_completion_tokens=60
    )
    assert penalized.choices[0].message.content.startswith("AAAA")
    plain = greedy(client, "base", "hello", max_completion_tokens=20).choices[0].message.content
    varied = greedy(client, "base", "hello", max_completion_tokens=20, presence_penalty=2, frequency_penalty=2)
    assert len(set(varied.choices[0].message.content)) > len(set(plain))


def test_a_conversation_with_content_parts_and_empty_responses(client, models):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": " two"}]},
        {"role": "assistant", "content": "", "refusal": None, "annotations": []},
        {"role": "user", "content": "three"},
    ]
    plain = [*messages[:1], {"role": "user", "content": "One two"}, {"role": "assistant", "content": ""}, messages[3]]
    response = client.chat.completions.create(model="base", messages=messages, max_completion_tokens=4, temperature=0)
    assert response.usage.prompt_tokens == len(render_prompt(models["base"][0], plain, None))


def rejected(client, **options) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**{"model": "base", "messages": user_message("hello"), **options})
    body = raised.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    return raised.value


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"store": True}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"extra_body": {"top_k": 5}}, "top_k"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "usr", "content": "hello"}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_unsupported_parameters_are_rejected_by_name(client, options, param):
    error = rejected(client, **options)
    assert (error.param or "").split(".")[0] == param
    assert param in str(error.message) or param in ("messages", "tools")


def test_an_earlier_answer_with_an_end_token_is_rejected(client):
    messages = user_message("What is <|im_end|>?")
    assert client.chat.completions.create(model="base", messages=messages, max_tokens=1).usage.prompt_tokens > 10
    history = [*messages, {"role": "assistant", "content": "It is <|im_end|>."}, *user_message("Why?")]
    error = rejected(client, messages=history)
    assert error.param == "messages"
    assert 'messages[1]: the assistant message contains "<|im_end|>"' in error.message


def test_a_too_long_prompt_is_rejected_with_the_limit(client):
    for options in ({"messages": user_message("word " * 3000)}, {"max_tokens": 5000}):
        error = rejected(client, **options)
        assert error.code == "context_length_exceeded"
        assert "2048 tokens" in error.message
        with pytest.raises(openai.BadRequestError, match="2048"):  # an HTTP error before the stream starts
            client.chat.completions.create(
                **{"model": "base", "messages": user_message("hello"), "stream": True, **options},
            )


def test_an_unknown_model_returns_404(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="ft:none", messages=user_message("hello"))
    assert raised.value.code == "model_not_found"

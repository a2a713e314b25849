"""Chat completions: sampling parameters and response fields, with short greedy responses."""

from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletion

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.outcome import Broken
from tunesmith.serving.conformance.shapes import expect_error, or_not_supported, require_shape

MESSAGES: list[Any] = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "Which colour has the moon?"},
]
TOKENS = 8


def chat(client: OpenAI, model: str, **fields: Any) -> ChatCompletion:
    request: dict[str, Any] = {
        "messages": MESSAGES,
        "max_completion_tokens": TOKENS,
        "temperature": 0,
        "seed": 3,
        **fields,
    }
    return client.chat.completions.create(model=model, **{k: v for k, v in request.items() if v is not None})


def _text(response: ChatCompletion, index: int = 0) -> str:
    content = response.choices[index].message.content
    if not isinstance(content, str):
        raise Broken(f"the content is {content!r}")
    return content


def _object(bench: Bench) -> None:
    response = chat(bench.client, bench.base)
    require_shape(response)
    require(response.id and response.object == "chat.completion", f"the response is {response!r:.120}")
    require_equal(response.model, bench.base, "model")
    require_equal(response.choices[0].message.role, "assistant", "the role")
    usage = response.usage
    if usage is None:
        raise Broken("usage is missing")
    require(usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= TOKENS, f"usage is {usage!r}")
    require_equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "total_tokens")


def _limits(bench: Bench) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        response = chat(bench.client, bench.base, **{"max_completion_tokens": None, name: 1})
        usage = response.usage
        require(usage and usage.completion_tokens == 1, f"with {name}=1, usage is {usage!r}")
        require(
            response.choices[0].finish_reason in ("length", "stop"),
            f"finish_reason is {response.choices[0].finish_reason}",
        )
    expect_error(lambda: chat(bench.strict, bench.base, max_completion_tokens=-1))


def _greedy(bench: Bench) -> None:
    require_equal(_text(chat(bench.client, bench.base)), _text(chat(bench.client, bench.base)), "the greedy response")


def _seed(bench: Bench) -> None:
    sampled = {"temperature": 1.5, "top_p": 0.9, "seed": 11}
    first, second = (_text(chat(bench.client, bench.base, **sampled)) for _ in range(2))
    require_equal(second, first, "the second response with the same seed")
    others = {
        _text(chat(bench.client, bench.base, temperature=2.0, seed=seed, max_completion_tokens=12)) for seed in range(6)
    }
    require(len(others) > 1, "six seeds at temperature 2 gave the same response: sampling has no effect")


def _n(bench: Bench) -> None:
    response = chat(bench.client, bench.base, n=3, temperature=1.0)
    require_equal([choice.index for choice in response.choices], [0, 1, 2], "the choices")
    require_shape(response)


def _stop(bench: Bench) -> None:
    whole = _text(chat(bench.client, bench.base, max_completion_tokens=24))
    require(whole, "the greedy response is empty")
    marker = whole[len(whole) // 2 :][:2]
    for stop in (marker, [marker, "no such text"]):
        response = chat(bench.client, bench.base, max_completion_tokens=24, stop=stop)
        require_equal(_text(response), whole[: whole.index(marker)], f"the response up to the stop string {marker!r}")
        require_equal(response.choices[0].finish_reason, "stop", "finish_reason")


def _logprobs(bench: Bench) -> None:
    response = chat(bench.client, bench.base, logprobs=True, top_logprobs=3)
    require_shape(response)
    logprobs = response.choices[0].logprobs
    if logprobs is None or not logprobs.content:
        raise Broken(f"logprobs is {logprobs!r}")
    require_equal("".join(token.token for token in logprobs.content), _text(response), "the text of the tokens")
    for token in logprobs.content:
        require(token.logprob <= 1e-6, f"a logprob is {token.logprob}")
        require_equal(len(token.top_logprobs), 3, "the number of top_logprobs")
        top = [each.logprob for each in token.top_logprobs]
        require(top == sorted(top, reverse=True), "top_logprobs are not sorted")
        require(abs(top[0] - token.logprob) < 1e-3, "a greedy token is not the most likely one")
    require(chat(bench.client, bench.base).choices[0].logprobs is None, "logprobs are returned without being requested")
    expect_error(lambda: chat(bench.strict, bench.base, top_logprobs=3))


def _penalties(bench: Bench) -> None:
    chat(bench.client, bench.base, presence_penalty=1.0, frequency_penalty=-0.5)
    for invalid in ({"presence_penalty": 3}, {"frequency_penalty": -3}, {"temperature": 3}, {"top_p": 2}):
        expect_error(lambda fields=invalid: chat(bench.strict, bench.base, **fields))


def _logit_bias(bench: Bench) -> None:
    """A bias of 100 forces a token, so eight different tokens cannot give the same response."""

    def forced(token: int) -> str:
        return _text(chat(bench.client, bench.base, max_completion_tokens=1, logit_bias={str(token): 100}))

    texts = [forced(token) for token in range(40, 48)]
    require(len(set(texts)) > 1, f"a bias of 100 has no effect: the response is {texts[0]!r} for each token")


def _response_format(bench: Bench) -> None:
    require_shape(chat(bench.client, bench.base, response_format={"type": "text"}))


def _tools(bench: Bench) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {
        "type": "function",
        "function": {"name": "weather", "description": "Weather of a city.", "parameters": parameters},
    }
    response = or_not_supported(lambda: chat(bench.strict, bench.base, tools=[tool]))
    require_shape(response)
    plain = chat(bench.client, bench.base)
    if not response.usage or not plain.usage:
        raise Broken("usage is missing")
    require(response.usage.prompt_tokens > plain.usage.prompt_tokens, "the tools are not part of the prompt")


def _roles(bench: Bench) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is the weather in Oslo?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    require_shape(or_not_supported(lambda: chat(bench.strict, bench.base, messages=messages)))


def _unknown_model(bench: Bench) -> None:
    for name in ("no-such-model-anywhere", "ft:no-such:org::12345678"):
        expect_error(lambda n=name: chat(bench.strict, n), 404, code="model_not_found")


def _tuned(bench: Bench) -> None:
    name = bench.tuned()
    response = chat(bench.client, name)
    require_shape(response)
    require_equal(response.model, name, "model")
    require_equal(_text(chat(bench.client, name)), _text(response), "the second greedy response")


CHECKS = (
    Check(
        "chat: object",
        "POST /chat/completions: message, finish_reason and usage, with the types of the package",
        _object,
    ),
    Check("chat: greedy", "temperature 0 is deterministic", _greedy),
    Check("chat: limits", "max_completion_tokens and max_tokens", _limits),
    Check("chat: seed", "seed, temperature and top_p", _seed),
    Check("chat: n", "n choices", _n),
    Check("chat: stop", "a string or a list, not part of the response", _stop),
    Check("chat: logprobs", "logprobs and top_logprobs", _logprobs),
    Check("chat: ranges", "penalties, temperature and top_p are checked against their ranges", _penalties),
    Check("chat: logit_bias", "logit_bias", _logit_bias),
    Check("chat: response_format", "at least text", _response_format),
    Check("chat: tools", "tools are passed through the chat template", _tools),
    Check("chat: roles", "system, developer, user, assistant, tool", _roles),
    Check("chat: unknown model", "an unknown model returns 404 with code `model_not_found`", _unknown_model),
    Check("chat: tuned", "a fine-tuned model can be used by its name", _tuned, True),
)

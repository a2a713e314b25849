"""Chats: the parameters that shape an answer, and what the answer tells. Greedy answers, of a few tokens."""

from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletion

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.outcome import Broken
from tunesmith.serving.conformance.shapes import or_not_supported, refused, require_shape

ASKED: list[Any] = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "Which colour has the moon?"},
]
TOKENS = 8


def chat(client: OpenAI, model: str, **fields: Any) -> ChatCompletion:
    asked: dict[str, Any] = {"messages": ASKED, "max_completion_tokens": TOKENS, "temperature": 0, "seed": 3, **fields}
    return client.chat.completions.create(model=model, **{k: v for k, v in asked.items() if v is not None})


def _text(answer: ChatCompletion, index: int = 0) -> str:
    content = answer.choices[index].message.content
    if not isinstance(content, str):
        raise Broken(f"the content is {content!r}")
    return content


def _object(bench: Bench) -> None:
    answer = chat(bench.client, bench.base)
    require_shape(answer)
    require(answer.id and answer.object == "chat.completion", f"the answer is {answer!r:.120}")
    require_equal(answer.model, bench.base, "model")
    require_equal(answer.choices[0].message.role, "assistant", "the role")
    usage = answer.usage
    if usage is None:
        raise Broken("there is no usage")
    require(usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= TOKENS, f"usage is {usage!r}")
    require_equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "total_tokens")


def _limits(bench: Bench) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = chat(bench.client, bench.base, **{"max_completion_tokens": None, name: 1})
        usage = answer.usage
        require(usage and usage.completion_tokens == 1, f"with {name}=1, usage is {usage!r}")
        require(answer.choices[0].finish_reason in ("length", "stop"), f"it ends by {answer.choices[0].finish_reason}")
    refused(lambda: chat(bench.strict, bench.base, max_completion_tokens=-1))


def _greedy(bench: Bench) -> None:
    require_equal(_text(chat(bench.client, bench.base)), _text(chat(bench.client, bench.base)), "the greedy answer")


def _seed(bench: Bench) -> None:
    drawn = {"temperature": 1.5, "top_p": 0.9, "seed": 11}
    first, second = (_text(chat(bench.client, bench.base, **drawn)) for _ in range(2))
    require_equal(second, first, "the second answer with one seed")
    others = {
        _text(chat(bench.client, bench.base, temperature=2.0, seed=seed, max_completion_tokens=12)) for seed in range(6)
    }
    require(len(others) > 1, "six seeds at temperature 2 give one answer: nothing is drawn")


def _n(bench: Bench) -> None:
    answer = chat(bench.client, bench.base, n=3, temperature=1.0)
    require_equal([choice.index for choice in answer.choices], [0, 1, 2], "the choices")
    require_shape(answer)


def _stop(bench: Bench) -> None:
    whole = _text(chat(bench.client, bench.base, max_completion_tokens=24))
    require(whole, "the greedy answer is empty")
    mark = whole[len(whole) // 2 :][:2]
    for stop in (mark, [mark, "no such words"]):
        answer = chat(bench.client, bench.base, max_completion_tokens=24, stop=stop)
        require_equal(_text(answer), whole[: whole.index(mark)], f"the answer up to the stop {mark!r}")
        require_equal(answer.choices[0].finish_reason, "stop", "finish_reason")


def _logprobs(bench: Bench) -> None:
    answer = chat(bench.client, bench.base, logprobs=True, top_logprobs=3)
    require_shape(answer)
    told = answer.choices[0].logprobs
    if told is None or not told.content:
        raise Broken(f"logprobs is {told!r}")
    require_equal("".join(token.token for token in told.content), _text(answer), "the text of the tokens")
    for token in told.content:
        require(token.logprob <= 1e-6, f"a logprob is {token.logprob}")
        require_equal(len(token.top_logprobs), 3, "the number of top_logprobs")
        top = [each.logprob for each in token.top_logprobs]
        require(top == sorted(top, reverse=True), "top_logprobs are not sorted")
        require(abs(top[0] - token.logprob) < 1e-3, "a greedy token is not the likeliest")
    require(chat(bench.client, bench.base).choices[0].logprobs is None, "logprobs come unasked")
    refused(lambda: chat(bench.strict, bench.base, top_logprobs=3))


def _penalties(bench: Bench) -> None:
    chat(bench.client, bench.base, presence_penalty=1.0, frequency_penalty=-0.5)
    for wrong in ({"presence_penalty": 3}, {"frequency_penalty": -3}, {"temperature": 3}, {"top_p": 2}):
        refused(lambda w=wrong: chat(bench.strict, bench.base, **w))


def _logit_bias(bench: Bench) -> None:
    """A token with a bias of 100 is taken: eight such tokens do not give one and the same answer."""

    def forced(token: int) -> str:
        return _text(chat(bench.client, bench.base, max_completion_tokens=1, logit_bias={str(token): 100}))

    texts = [forced(token) for token in range(40, 48)]
    require(len(set(texts)) > 1, f"whichever token has a bias of 100, the answer is {texts[0]!r}")


def _response_format(bench: Bench) -> None:
    require_shape(chat(bench.client, bench.base, response_format={"type": "text"}))


def _tools(bench: Bench) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": parameters}}
    answer = or_not_supported(lambda: chat(bench.strict, bench.base, tools=[tool]))
    require_shape(answer)
    plain = chat(bench.client, bench.base)
    if not answer.usage or not plain.usage:
        raise Broken("there is no usage")
    require(answer.usage.prompt_tokens > plain.usage.prompt_tokens, "the tools are not part of the prompt")


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
        refused(lambda n=name: chat(bench.strict, n), 404, code="model_not_found")


def _tuned(bench: Bench) -> None:
    name = bench.tuned()
    answer = chat(bench.client, name)
    require_shape(answer)
    require_equal(answer.model, name, "model")
    require_equal(_text(chat(bench.client, name)), _text(answer), "the second greedy answer")


CHECKS = (
    Check("chat: object", "POST /chat/completions: message, finish_reason, usage, of the package's types", _object),
    Check("chat: greedy", "temperature 0 gives one answer", _greedy),
    Check("chat: limits", "max_completion_tokens and max_tokens", _limits),
    Check("chat: seed", "seed, temperature and top_p", _seed),
    Check("chat: n", "n answers", _n),
    Check("chat: stop", "stop: a text or a list, no part of the answer", _stop),
    Check("chat: logprobs", "logprobs and top_logprobs", _logprobs),
    Check("chat: ranges", "penalties, temperature and top_p within their ranges", _penalties),
    Check("chat: logit_bias", "logit_bias", _logit_bias),
    Check("chat: response_format", "response_format: text at least", _response_format),
    Check("chat: tools", "tools are passed through the chat template", _tools),
    Check("chat: roles", "roles system, developer, user, assistant, tool", _roles),
    Check("chat: unknown model", "an unknown model answers 404 with code `model_not_found`", _unknown_model),
    Check("chat: tuned", "a tuned model answers by its name", _tuned, True),
)

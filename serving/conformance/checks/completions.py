"""Text completions: all prompt types, echo, logprobs."""

from typing import Any

from openai.types import Completion

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.outcome import Broken
from tunesmith.serving.conformance.shapes import expect_error, require_shape

PROMPT = "The moon is"


def _complete(bench: Bench, prompt: Any = PROMPT, **fields: Any) -> Completion:
    request: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "seed": 3, **fields}
    return bench.client.completions.create(model=bench.base, prompt=prompt, **request)


def _object(bench: Bench) -> None:
    response = _complete(bench)
    require_shape(response)
    require_equal((response.object, response.model), ("text_completion", bench.base), "object and model")
    if response.usage is None:
        raise Broken("usage is missing")
    require(0 < response.usage.completion_tokens <= 6, f"usage is {response.usage!r}")
    require_equal(_complete(bench).choices[0].text, response.choices[0].text, "the second greedy response")


def _prompts(bench: Bench) -> None:
    one, other = _complete(bench).choices[0].text, _complete(bench, "Bread is").choices[0].text
    both = _complete(bench, [PROMPT, "Bread is"])
    require_equal(
        [(c.index, c.text) for c in both.choices], [(0, one), (1, other)], "the responses to a list of prompts"
    )


def _token_ids(bench: Bench) -> None:
    ids = list(range(5, 11))
    one = _complete(bench, ids)
    require(one.usage and one.usage.prompt_tokens == len(ids), f"usage is {one.usage!r} for {len(ids)} token ids")
    two = _complete(bench, [ids, ids[:3]])
    require_equal(
        (len(two.choices), two.choices[0].text), (2, one.choices[0].text), "the responses to lists of token ids"
    )


def _echo(bench: Bench) -> None:
    plain, echoed = _complete(bench).choices[0].text, _complete(bench, echo=True).choices[0].text
    require_equal(echoed, PROMPT + plain, "the response with echo")


def _logprobs(bench: Bench) -> None:
    response = _complete(bench, logprobs=2)
    require_shape(response)
    logprobs = response.choices[0].logprobs
    if logprobs is None or not logprobs.tokens or not logprobs.token_logprobs or not logprobs.top_logprobs:
        raise Broken(f"logprobs is {logprobs!r}")
    require_equal("".join(logprobs.tokens), response.choices[0].text, "the text of the tokens")
    require_equal(len(logprobs.token_logprobs), len(logprobs.tokens), "the number of token_logprobs")
    require(all(value <= 1e-6 for value in logprobs.token_logprobs), "a logprob is above 0")
    echoed = _complete(bench, logprobs=1, echo=True).choices[0].logprobs
    require(
        echoed and echoed.tokens and len(echoed.tokens) > len(logprobs.tokens), "with echo, the prompt has no logprobs"
    )


def _n_and_stop(bench: Bench) -> None:
    require_equal([c.index for c in _complete(bench, n=2, temperature=1).choices], [0, 1], "the choices")
    whole = _complete(bench, max_tokens=16).choices[0].text
    require(whole, "the greedy response is empty")
    marker = whole[len(whole) // 2 :][:2]
    response = _complete(bench, max_tokens=16, stop=marker).choices[0]
    require_equal(
        (response.text, response.finish_reason), (whole[: whole.index(marker)], "stop"), "text and finish_reason"
    )


def _suffix(bench: Bench) -> None:
    expect_error(lambda: bench.strict.completions.create(model=bench.base, prompt=PROMPT, suffix="."), param="suffix")


CHECKS = (
    Check("completions: object", "POST /completions: text and usage, with the types of the package", _object),
    Check("completions: prompts", "prompt as string or list", _prompts),
    Check("completions: token ids", "prompt as token ids, or a list of such prompts", _token_ids),
    Check("completions: echo", "echo", _echo),
    Check("completions: logprobs", "logprobs; with echo, also of the prompt", _logprobs),
    Check("completions: n and stop", "n, stop", _n_and_stop),
    Check("completions: suffix", "suffix is rejected with an error", _suffix),
)

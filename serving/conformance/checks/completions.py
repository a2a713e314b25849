"""Plain completions: every form of a prompt, echo, logprobs."""

from typing import Any

from openai.types import Completion

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.outcome import Broken
from tunesmith.serving.conformance.shapes import refused, require_shape

PROMPT = "The moon is"


def _complete(bench: Bench, prompt: Any = PROMPT, **fields: Any) -> Completion:
    asked: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "seed": 3, **fields}
    return bench.client.completions.create(model=bench.base, prompt=prompt, **asked)


def _object(bench: Bench) -> None:
    answer = _complete(bench)
    require_shape(answer)
    require_equal((answer.object, answer.model), ("text_completion", bench.base), "object and model")
    if answer.usage is None:
        raise Broken("there is no usage")
    require(0 < answer.usage.completion_tokens <= 6, f"usage is {answer.usage!r}")
    require_equal(_complete(bench).choices[0].text, answer.choices[0].text, "the second greedy answer")


def _prompts(bench: Bench) -> None:
    one, other = _complete(bench).choices[0].text, _complete(bench, "Bread is").choices[0].text
    both = _complete(bench, [PROMPT, "Bread is"])
    require_equal([(c.index, c.text) for c in both.choices], [(0, one), (1, other)], "the answers to a list of prompts")


def _token_ids(bench: Bench) -> None:
    ids = list(range(5, 11))
    one = _complete(bench, ids)
    require(one.usage and one.usage.prompt_tokens == len(ids), f"usage is {one.usage!r} for {len(ids)} token ids")
    two = _complete(bench, [ids, ids[:3]])
    require_equal(
        (len(two.choices), two.choices[0].text), (2, one.choices[0].text), "the answers to lists of token ids"
    )


def _echo(bench: Bench) -> None:
    plain, echoed = _complete(bench).choices[0].text, _complete(bench, echo=True).choices[0].text
    require_equal(echoed, PROMPT + plain, "the answer with echo")


def _logprobs(bench: Bench) -> None:
    answer = _complete(bench, logprobs=2)
    require_shape(answer)
    told = answer.choices[0].logprobs
    if told is None or not told.tokens or not told.token_logprobs or not told.top_logprobs:
        raise Broken(f"logprobs is {told!r}")
    require_equal("".join(told.tokens), answer.choices[0].text, "the text of the tokens")
    require_equal(len(told.token_logprobs), len(told.tokens), "the number of token_logprobs")
    require(all(value <= 1e-6 for value in told.token_logprobs), "a logprob is above 0")
    echoed = _complete(bench, logprobs=1, echo=True).choices[0].logprobs
    require(echoed and echoed.tokens and len(echoed.tokens) > len(told.tokens), "with echo, the prompt has no logprobs")


def _n_and_stop(bench: Bench) -> None:
    require_equal([c.index for c in _complete(bench, n=2, temperature=1).choices], [0, 1], "the choices")
    whole = _complete(bench, max_tokens=16).choices[0].text
    require(whole, "the greedy answer is empty")
    mark = whole[len(whole) // 2 :][:2]
    answer = _complete(bench, max_tokens=16, stop=mark).choices[0]
    require_equal((answer.text, answer.finish_reason), (whole[: whole.index(mark)], "stop"), "text and finish_reason")


def _suffix(bench: Bench) -> None:
    refused(lambda: bench.strict.completions.create(model=bench.base, prompt=PROMPT, suffix="."), param="suffix")


CHECKS = (
    Check("completions: object", "POST /completions: text, usage, of the package's types", _object),
    Check("completions: prompts", "prompt as string or list", _prompts),
    Check("completions: token ids", "prompt as token ids, or lists of them", _token_ids),
    Check("completions: echo", "echo", _echo),
    Check("completions: logprobs", "logprobs, with echo those of the prompt", _logprobs),
    Check("completions: n and stop", "n, stop", _n_and_stop),
    Check("completions: suffix", "suffix refused plainly", _suffix),
)

"""Streaming: chunks that add up to the response, usage at the end if requested, then `[DONE]`."""

import json
from collections.abc import Iterator
from typing import Any

from openai.types.chat import ChatCompletionChunk

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.checks.chat import MESSAGES, TOKENS, chat
from tunesmith.serving.conformance.shapes import expect_error, require_shape

SAMPLING: dict[str, Any] = {"max_completion_tokens": TOKENS, "temperature": 0, "seed": 3}


def _chunks(bench: Bench, **fields: Any) -> list[ChatCompletionChunk]:
    request: dict[str, Any] = {"messages": MESSAGES, **SAMPLING, **fields}
    return list(bench.client.chat.completions.create(model=bench.base, stream=True, **request))


def _adds_up(bench: Bench) -> None:
    chunks = _chunks(bench)
    for chunk in chunks:
        require_shape(chunk)
        require_equal(chunk.object, "chat.completion.chunk", "object")
    require_equal(len({chunk.id for chunk in chunks}), 1, "the number of ids in a stream")
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    require_equal(deltas[0].role, "assistant", "the role in the first chunk")
    whole = chat(bench.client, bench.base)
    require_equal("".join(delta.content or "" for delta in deltas), whole.choices[0].message.content, "the text")
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    require_equal(ends, [whole.choices[0].finish_reason], "the finish_reasons")
    require(all(chunk.usage is None for chunk in chunks), "usage is returned without being requested")


def _usage(bench: Bench) -> None:
    *chunks, last = _chunks(bench, stream_options={"include_usage": True})
    require(last.usage is not None and last.choices == [], f"the last chunk is not a usage chunk: {last!r:.200}")
    require(all(chunk.usage is None for chunk in chunks), "a chunk before the last one has usage")
    require(all(chunk.choices for chunk in chunks), "a chunk before the last one has no choices")
    whole = chat(bench.client, bench.base).usage
    assert last.usage is not None
    usage = last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens
    require(whole is not None, "a response without streaming has no usage")
    assert whole is not None
    require_equal(usage, (whole.prompt_tokens, whole.completion_tokens, whole.total_tokens), "usage")


def _done(bench: Bench) -> None:
    lines = list(_data_lines(bench, stream_options={"include_usage": True}))
    require_equal(lines[-1], "[DONE]", "the last data line")
    for line in lines[:-1]:
        require("choices" in json.loads(line), f"a data line is {line[:120]!r}")


def _data_lines(bench: Bench, **fields: Any) -> Iterator[str]:
    request: dict[str, Any] = {"messages": MESSAGES, **SAMPLING, **fields}
    streaming = bench.client.chat.completions.with_streaming_response
    with streaming.create(model=bench.base, stream=True, **request) as response:
        content_type = response.headers.get("content-type", "")
        require(content_type.startswith("text/event-stream"), f"content-type is {content_type!r}")
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield line[5:].strip()


def _n(bench: Bench) -> None:
    chunks = _chunks(bench, n=2, temperature=1.0)
    ends = sorted(choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason)
    require_equal(ends, [0, 1], "the choices with a finish_reason")


def _completions(bench: Bench) -> None:
    request: dict[str, Any] = {"model": bench.base, "prompt": "The moon is", "max_tokens": TOKENS, "temperature": 0}
    whole = bench.client.completions.create(**request)
    chunks = list(bench.client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    require_equal(text, whole.choices[0].text, "the text")
    require_equal(chunks[-1].usage, whole.usage, "usage in the last chunk")


def _refused(bench: Bench) -> None:
    """Before the first chunk, errors are HTTP errors."""
    expect_error(lambda: chat(bench.strict, "no-such-model-anywhere", stream=True), 404)
    expect_error(lambda: chat(bench.strict, bench.base, stream_options={"include_usage": True}))


CHECKS = (
    Check("streaming: chunks", "SSE `chat.completion.chunk`: the deltas add up to the response", _adds_up),
    Check("streaming: usage", "`include_usage`: the last chunk has usage and no choices", _usage),
    Check("streaming: DONE", "the stream ends with `[DONE]`", _done),
    Check("streaming: n", "every choice has a finish_reason", _n),
    Check("streaming: completions", "POST /completions supports streaming", _completions),
    Check("streaming: refused", "an error before the stream starts is an HTTP error of the same shape", _refused),
)

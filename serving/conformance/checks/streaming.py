"""Streams: chunks that add up to the answer, usage at the end where it was asked for, then `[DONE]`."""

import json
from collections.abc import Iterator
from typing import Any

from openai.types.chat import ChatCompletionChunk

from tunesmith.serving.conformance.bench import Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.checks.chat import ASKED, TOKENS, chat
from tunesmith.serving.conformance.shapes import refused, require_shape

SHAPING: dict[str, Any] = {"max_completion_tokens": TOKENS, "temperature": 0, "seed": 3}


def _chunks(bench: Bench, **fields: Any) -> list[ChatCompletionChunk]:
    asked: dict[str, Any] = {"messages": ASKED, **SHAPING, **fields}
    return list(bench.client.chat.completions.create(model=bench.base, stream=True, **asked))


def _adds_up(bench: Bench) -> None:
    chunks = _chunks(bench)
    for chunk in chunks:
        require_shape(chunk)
        require_equal(chunk.object, "chat.completion.chunk", "object")
    require_equal(len({chunk.id for chunk in chunks}), 1, "the number of ids in one stream")
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    require_equal(deltas[0].role, "assistant", "the role in the first chunk")
    whole = chat(bench.client, bench.base)
    require_equal("".join(delta.content or "" for delta in deltas), whole.choices[0].message.content, "the text")
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    require_equal(ends, [whole.choices[0].finish_reason], "the finish_reasons")
    require(all(chunk.usage is None for chunk in chunks), "usage comes unasked")


def _usage(bench: Bench) -> None:
    *chunks, last = _chunks(bench, stream_options={"include_usage": True})
    require(last.usage is not None and last.choices == [], f"the last chunk is no chunk of usage: {last!r:.200}")
    require(all(chunk.usage is None for chunk in chunks), "a chunk before the last one holds usage")
    require(all(chunk.choices for chunk in chunks), "a chunk before the last one has no choices")
    whole = chat(bench.client, bench.base).usage
    assert last.usage is not None
    told = last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens
    require(whole is not None, "an answer that is not streamed has no usage")
    assert whole is not None
    require_equal(told, (whole.prompt_tokens, whole.completion_tokens, whole.total_tokens), "usage")


def _done(bench: Bench) -> None:
    told = list(_data_lines(bench, stream_options={"include_usage": True}))
    require_equal(told[-1], "[DONE]", "the last line of data")
    for line in told[:-1]:
        require("choices" in json.loads(line), f"a line of data is {line[:120]!r}")


def _data_lines(bench: Bench, **fields: Any) -> Iterator[str]:
    asked: dict[str, Any] = {"messages": ASKED, **SHAPING, **fields}
    streaming = bench.client.chat.completions.with_streaming_response
    with streaming.create(model=bench.base, stream=True, **asked) as answer:
        kind = answer.headers.get("content-type", "")
        require(kind.startswith("text/event-stream"), f"content-type is {kind!r}")
        for line in answer.iter_lines():
            if line.startswith("data:"):
                yield line[5:].strip()


def _n(bench: Bench) -> None:
    chunks = _chunks(bench, n=2, temperature=1.0)
    ends = sorted(choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason)
    require_equal(ends, [0, 1], "the choices that end")


def _completions(bench: Bench) -> None:
    asked: dict[str, Any] = {"model": bench.base, "prompt": "The moon is", "max_tokens": TOKENS, "temperature": 0}
    whole = bench.client.completions.create(**asked)
    chunks = list(bench.client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    require_equal(text, whole.choices[0].text, "the text")
    require_equal(chunks[-1].usage, whole.usage, "usage in the last chunk")


def _refused(bench: Bench) -> None:
    """Before the first chunk, an error is an answer of its own."""
    refused(lambda: chat(bench.strict, "no-such-model-anywhere", stream=True), 404)
    refused(lambda: chat(bench.strict, bench.base, stream_options={"include_usage": True}))


CHECKS = (
    Check("streaming: chunks", "SSE `chat.completion.chunk`: the deltas add up to the answer", _adds_up),
    Check("streaming: usage", "`include_usage`: a last chunk with empty choices and usage", _usage),
    Check("streaming: DONE", "then `[DONE]`", _done),
    Check("streaming: n", "every choice of a stream ends", _n),
    Check("streaming: completions", "POST /completions streams too", _completions),
    Check("streaming: refused", "what is refused before the stream begins is an error of the one shape", _refused),
)

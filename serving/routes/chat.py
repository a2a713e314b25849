"""POST /v1/chat/completions."""

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, StrictBool, StrictInt

from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.messages import check_tools, read_prompt
from tunesmith.inference import rendering
from tunesmith.inference.grammar import Grammar, Tool
from tunesmith.inference.tool_calls import ToolCall, ToolCallReader
from tunesmith.inference.types import Chunk, Sampling, TokenLogprob
from tunesmith.serving.engine.protocol import EngineRejected
from tunesmith.serving.engine.rejections import engine_rejections
from tunesmith.serving.errors import ApiError
from tunesmith.serving.objects.chat import (
    AssistantMessage,
    CandidateLogprob,
    ChatCompletion,
    ChatCompletionChunk,
    ChatHeader,
    ChoiceLogprobs,
    GeneratedTokenLogprob,
    MessageDelta,
    MessageToolCall,
    TokenText,
)
from tunesmith.serving.objects.usage import Usage, usage_object
from tunesmith.serving.routes.context import By, Here
from tunesmith.serving.routes.forms import ResponseFormat, chosen_tool, grammar_of
from tunesmith.serving.routes.generation import (
    Inference,
    Shaping,
    choices,
    deidentified_for,
    find_inference,
    streamed,
    whole,
)

router = APIRouter(prefix="/v1", tags=["inference"])

Messages = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]


class ChatRequest(Shaping):
    REFUSED: ClassVar[dict[str, str]] = {
        "audio": "answers are text.",
        "function_call": "it is the older form; use 'tool_choice'.",
        "functions": "it is the older form; use 'tools'.",
        "moderation": "nothing is moderated.",
        "prediction": "no text is predicted.",
        "prompt_cache_options": "no prompts are cached.",
        "reasoning_effort": "how long a model thinks is not controlled.",
        "verbosity": "the length of answers is not controlled; use 'max_completion_tokens'.",
        "web_search_options": "nothing is searched.",
    }

    messages: Messages
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    modalities: Annotated[list[str], Field(max_length=8)] | None = None
    store: StrictBool | None = None
    # What follows is taken without effect.
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None

    def num_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise ApiError("'top_logprobs' is only allowed when 'logprobs' is enabled.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def shown_tools(self) -> Sequence[Mapping[str, object]] | None:
        """The tools that the model shall see."""
        return None if self.tool_choice == "none" else self.tools or None

    def chosen_tool(self) -> str | Tool:
        """See forms.py."""
        return chosen_tool(self.tool_choice, self.tools)

    def grammar(self) -> Grammar | None:
        """What the answer must look like. Raises ApiError for what cannot be asked."""
        answer = None if self.response_format is None else self.response_format.schema_of_answer()
        many = self.parallel_tool_calls is not False
        return grammar_of(answer, self.shown_tools(), self.chosen_tool(), many=many)

    def require_supported(self) -> None:
        self.require_known()
        if self.modalities is not None and self.modalities != ["text"]:
            raise ApiError("'modalities' can be ['text'] only.", param="modalities", code="unsupported_value")
        if self.store:
            raise ApiError("'store' is not supported: answers are not kept.", param="store", code="unsupported_value")


@router.post("/chat/completions", summary="Answer a conversation", response_model=None)
async def create_chat_completion(request: Request, body: ChatRequest, server: Here, caller: By) -> Response:
    """The next message of a conversation, whole or as a stream of chunks."""
    body.require_supported()
    grammar = body.grammar()
    inference = await find_inference(server, caller, body.model)
    asked_of = await deidentified_for(server, {"messages": body.messages})
    tools, prompt = await _prompt(inference, body, asked_of["messages"])
    limit = body.max_completion_tokens or body.max_tokens
    asked = [
        (prompt, body.sampling(index, max_new_tokens=limit, logprobs=body.num_logprobs(), grammar=grammar))
        for index in range(body.n or 1)
    ]
    making = _Making(inference, body, asked, reads_calls=tools is not None)
    return await streamed(making.chunks()) if body.stream else await whole(request, making.answer())


async def _prompt(
    inference: Inference, body: ChatRequest, asked: Sequence[Mapping[str, object]]
) -> tuple[list[Any] | None, list[int]]:
    try:
        messages = read_prompt(asked)
    except Refusal as refusal:
        raise ApiError(f"{refusal.reason}; {refusal.remedy}", param="messages") from refusal
    try:
        tools = check_tools(body.shown_tools())
    except Refusal as refusal:
        raise ApiError(f"{refusal.reason}; {refusal.remedy}", param="tools") from refusal
    try:
        target = inference.target
        prompt = await inference.engine.render(target, messages, tools)
        with engine_rejections():
            shown = tools is None or rendering.shows_tools(rendering.tokenizer_dir(target), tools)
        if not shown:
            raise ApiError(
                "This model's chat template shows no tools: it was not made for calling them.",
                param="tools",
                code="unsupported_value",
            )
    except EngineRejected as refused:
        raise ApiError(refused.message, param="messages", code=refused.code) from refused
    return tools, prompt


class _Choice:
    """One answer as it grows. Texts and calls are told as they become final. forced: the tool was named by the
    request; the hosted API gives no `tool_calls` as the reason of such an answer's end."""

    def __init__(self, index: int, reads_calls: bool, one_call: bool, forced: bool):
        self.index, self.one_call, self.forced = index, one_call, forced
        self.reader = ToolCallReader() if reads_calls else None
        self.content: list[str] = []
        self.calls: list[MessageToolCall] = []
        self.logprobs: list[TokenLogprob] = []
        self.num_tokens = 0
        self.finish: str | None = None

    def add(self, chunk: Chunk) -> list[MessageDelta]:
        """The deltas that the chunk gives."""
        self.num_tokens = chunk.completion_tokens
        self.logprobs += chunk.logprobs
        parts: list[str | ToolCall] = [chunk.text] if chunk.text else []
        if self.reader is not None:
            parts = self.reader.add(chunk.text)
            if chunk.finish is not None:
                parts += self.reader.finish()
        if chunk.finish is not None:
            called = self.reader is not None and self.reader.num_calls and chunk.finish == "stop" and not self.forced
            self.finish = "tool_calls" if called else chunk.finish
        return [delta for part in parts if (delta := self._delta(part))]

    def message(self) -> AssistantMessage:
        content = "".join(self.content) or (None if self.calls else "")
        message: AssistantMessage = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    def _delta(self, part: str | ToolCall) -> MessageDelta | None:
        if isinstance(part, str):
            self.content.append(part)
            return {"content": part}
        if self.calls and self.one_call:
            return None
        call: MessageToolCall = {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        self.calls.append(call)
        return {"tool_calls": [{"index": len(self.calls) - 1, **call}]}


class _Making:
    """One request's answers, whole or in chunks."""

    def __init__(
        self,
        inference: Inference,
        body: ChatRequest,
        asked: Sequence[tuple[list[int], Sampling]],
        reads_calls: bool,
    ):
        self.body, self.prompt_tokens = body, len(asked[0][0])
        self.with_logprobs = asked[0][1].logprobs is not None
        self.gained = choices(inference, asked)
        one_call, forced = body.parallel_tool_calls is False, isinstance(body.chosen_tool(), Tool)
        self.choices = [_Choice(index, reads_calls, one_call, forced) for index in range(len(asked))]
        self.head: ChatHeader = {
            "id": f"chatcmpl-{secrets.token_hex(14)}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": None,
        }

    async def answer(self) -> ChatCompletion:
        async for index, chunk in self.gained:
            self.choices[index].add(chunk)
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": choice.index,
                    "message": choice.message(),
                    "logprobs": self._logprobs(choice.logprobs),
                    "finish_reason": choice.finish,
                }
                for choice in self.choices
            ],
            "usage": self._usage(),
        }

    async def chunks(self) -> AsyncGenerator[ChatCompletionChunk, None]:
        started = False
        async for index, chunk in self.gained:
            if not started:  # nothing before the engine has accepted it
                for choice in self.choices:
                    yield self._chunk(choice, {"role": "assistant", "content": "", "refusal": None}, ())
                started = True
            choice = self.choices[index]
            logprobs = chunk.logprobs
            for delta in choice.add(chunk):
                yield self._chunk(choice, delta, logprobs)
                logprobs = ()
            if chunk.finish is not None:
                yield self._chunk(choice, {}, logprobs, choice.finish)
            elif logprobs:  # their text is still held back
                yield self._chunk(choice, {"content": ""}, logprobs)
        if self.body.wants_usage():
            yield {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}

    def _chunk(
        self, choice: _Choice, delta: MessageDelta, logprobs: Sequence[TokenLogprob], finish: str | None = None
    ) -> ChatCompletionChunk:
        chunk: ChatCompletionChunk = {
            **self.head,
            "object": "chat.completion.chunk",
            "choices": [
                {
                    "index": choice.index,
                    "delta": delta,
                    "logprobs": self._logprobs(logprobs) if logprobs else None,
                    "finish_reason": finish,
                }
            ],
        }
        if self.body.wants_usage():
            chunk["usage"] = None
        return chunk

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> ChoiceLogprobs | None:
        if not self.with_logprobs:
            return None
        return {"content": [_logprob(logprob) for logprob in logprobs], "refusal": None}

    def _usage(self) -> Usage:
        return usage_object(self.prompt_tokens, sum(choice.num_tokens for choice in self.choices))


def _logprob(logprob: TokenLogprob) -> GeneratedTokenLogprob:
    likeliest: list[CandidateLogprob] = [
        {**_token(text), "logprob": max(value, -9999.0)} for _, text, value in logprob.top
    ]
    return {**_token(logprob.text), "logprob": max(logprob.logprob, -9999.0), "top_logprobs": likeliest}


def _token(text: str) -> TokenText:
    return {"token": text, "bytes": None if "�" in text else list(text.encode("utf-8"))}

"""POST /v1/chat/completions."""

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, StrictBool, StrictInt

from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.messages import check_tools, read_prompt
from tunesmith.inference.answer_format import AnswerReader, answer_format
from tunesmith.inference.grammar import Grammar, Tool
from tunesmith.inference.thinking import Thinking
from tunesmith.inference.tool_calls.call import ToolCall
from tunesmith.inference.tool_calls.formats import schemas_of
from tunesmith.inference.types import Chunk, Sampling, TokenLogprob
from tunesmith.serving.engine.protocol import EngineRejected
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
from tunesmith.serving.routes.context import CallerDep, ServerDep
from tunesmith.serving.routes.generation import (
    GenerationRequest,
    Inference,
    deidentified_for,
    event_stream,
    find_inference,
    generate_all,
    json_response,
)
from tunesmith.serving.routes.structured_output import ResponseFormat, chosen_tool, grammar_of

router = APIRouter(prefix="/v1", tags=["inference"])

Messages = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=2048)]


class ChatRequest(GenerationRequest):
    UNSUPPORTED: ClassVar[dict[str, str]] = {
        "audio": "responses are text only.",
        "function_call": "deprecated; use 'tool_choice'.",
        "functions": "deprecated; use 'tools'.",
        "moderation": "there is no moderation.",
        "prediction": "there are no predicted outputs.",
        "prompt_cache_options": "prompt caching cannot be configured.",
        "reasoning_effort": "reasoning effort cannot be controlled.",
        "verbosity": "verbosity cannot be controlled; use 'max_completion_tokens'.",
        "web_search_options": "there is no web search.",
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
    chat_template_kwargs: dict[str, Any] | None = None
    """Values of variables of the chat template, such as `enable_thinking`."""
    # The following are accepted and ignored.
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
        """The tools to include in the prompt."""
        return None if self.tool_choice == "none" else self.tools or None

    def chosen_tool(self) -> str | Tool:
        """See `structured_output.chosen_tool`."""
        return chosen_tool(self.tool_choice, self.tools)

    def grammar(self) -> Grammar | None:
        """The grammar that the response must follow, or None. Raises ApiError for unsupported parameters."""
        schema = None if self.response_format is None else self.response_format.response_schema()
        many = self.parallel_tool_calls is not False
        return grammar_of(schema, self.shown_tools(), self.chosen_tool(), many=many)

    def is_structured(self) -> bool:
        """Whether a grammar determines the whole response: JSON, or calls of tools."""
        has_schema = self.response_format is not None and self.response_format.response_schema() is not None
        return has_schema or self.chosen_tool() not in ("auto", "none")

    def require_supported(self) -> None:
        self.require_known()
        if self.modalities is not None and self.modalities != ["text"]:
            raise ApiError("'modalities' must be ['text'].", param="modalities", code="unsupported_value")
        if self.store:
            raise ApiError(
                "'store' is not supported: completions are not stored.", param="store", code="unsupported_value"
            )


@router.post("/chat/completions", summary="Create a chat completion", response_model=None)
async def create_chat_completion(request: Request, body: ChatRequest, server: ServerDep, caller: CallerDep) -> Response:
    """Generate the next message of a conversation, as one object or as a stream of chunks."""
    body.require_supported()
    grammar = body.grammar()
    inference = await find_inference(server, caller, body.model)
    deidentified = await deidentified_for(server, {"messages": body.messages})
    tools, prompt = await _prompt(inference, body, deidentified["messages"])
    limit = body.max_completion_tokens or body.max_tokens
    format_ = await to_thread.run_sync(answer_format, inference.target, prompt, body.chat_template_kwargs)
    structured = body.is_structured()
    shown = () if structured else format_.shown_tokens(reads_calls=tools is not None)
    requests = [
        (prompt, body.sampling(i, max_new_tokens=limit, logprobs=body.num_logprobs(), grammar=grammar, shown=shown))
        for i in range(body.n or 1)
    ]
    schemas = None if tools is None else schemas_of(tools)
    constrained = grammar is not None
    readers = [format_.reader(schemas, structured=structured, constrained=constrained) for _ in requests]
    thinks = format_.thinks and not structured
    generation = _Generation(inference, body, requests, readers, thinks=thinks)
    if body.stream:
        return await event_stream(generation.chunks())
    return await json_response(request, generation.response())


async def _prompt(
    inference: Inference, body: ChatRequest, conversation: Sequence[Mapping[str, object]]
) -> tuple[list[Any] | None, list[int]]:
    """(tools in the prompt or None, the prompt's token ids)."""
    try:
        messages = read_prompt(conversation)
    except Refusal as refusal:
        raise ApiError(f"{refusal.reason}; {refusal.remedy}", param="messages") from refusal
    try:
        tools = check_tools(body.shown_tools())
    except Refusal as refusal:
        raise ApiError(f"{refusal.reason}; {refusal.remedy}", param="tools") from refusal
    try:
        prompt = await inference.engine.render(inference.target, messages, tools, body.chat_template_kwargs)
    except EngineRejected as refused:
        raise ApiError(refused.message, param=refused.param or "messages", code=refused.code) from refused
    return tools, prompt


class _Choice:
    """One choice of a response. Text and tool calls are emitted as they become final. forced: the request named the
    tool; like the hosted API, the finish reason is then not `tool_calls`."""

    def __init__(self, index: int, reader: AnswerReader, one_call: bool, forced: bool):
        self.index, self.reader, self.one_call, self.forced = index, reader, one_call, forced
        self.content: list[str] = []
        self.thinking: list[str] = []
        self.calls: list[MessageToolCall] = []
        self.logprobs: list[TokenLogprob] = []
        self.num_tokens = self.num_thinking_tokens = 0
        self.finish: str | None = None

    def add(self, chunk: Chunk) -> list[MessageDelta]:
        """Add a chunk; returns the resulting deltas."""
        self.num_tokens = chunk.completion_tokens
        self.logprobs += chunk.logprobs
        was_thinking = self.reader.is_thinking
        parts = [*self.reader.add(chunk.text)]
        if was_thinking or self.reader.is_thinking or any(isinstance(part, Thinking) for part in parts):
            self.num_thinking_tokens = chunk.completion_tokens
        if chunk.finish is not None:
            parts += self.reader.finish()
            called = self.reader.num_calls and chunk.finish == "stop" and not self.forced
            self.finish = "tool_calls" if called else chunk.finish
        return [delta for part in parts if (delta := self._delta(part))]

    def message(self) -> AssistantMessage:
        content = "".join(self.content) or (None if self.calls else "")
        message: AssistantMessage = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
        if self.thinking:
            message["reasoning_content"] = "".join(self.thinking)
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    def _delta(self, part: str | Thinking | ToolCall) -> MessageDelta | None:
        if isinstance(part, Thinking):
            self.thinking.append(part.text)
            return {"reasoning_content": part.text}
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


class _Generation:
    """Generates the choices of one request, for a single response or as a stream of chunks. readers: of the choices.
    thinks: whether the model may think."""

    def __init__(
        self,
        inference: Inference,
        body: ChatRequest,
        requests: Sequence[tuple[list[int], Sampling]],
        readers: Sequence[AnswerReader],
        *,
        thinks: bool,
    ):
        self.thinks = thinks
        self.body, self.prompt_tokens = body, len(requests[0][0])
        self.with_logprobs = requests[0][1].logprobs is not None
        self.stream = generate_all(inference, requests)
        one_call, forced = body.parallel_tool_calls is False, isinstance(body.chosen_tool(), Tool)
        self.choices = [_Choice(index, reader, one_call, forced) for index, reader in enumerate(readers)]
        self.head: ChatHeader = {
            "id": f"chatcmpl-{secrets.token_hex(14)}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": None,
        }

    async def response(self) -> ChatCompletion:
        async for index, chunk in self.stream:
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
        async for index, chunk in self.stream:
            if not started:  # send nothing before the engine has accepted the request
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
            elif logprobs:  # of text that is still held back
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
        thinking = sum(choice.num_thinking_tokens for choice in self.choices) if self.thinks else None
        return usage_object(self.prompt_tokens, sum(choice.num_tokens for choice in self.choices), thinking)


def _logprob(logprob: TokenLogprob) -> GeneratedTokenLogprob:
    candidates: list[CandidateLogprob] = [
        {**_token(text), "logprob": max(value, -9999.0)} for _, text, value in logprob.top
    ]
    return {**_token(logprob.text), "logprob": max(logprob.logprob, -9999.0), "top_logprobs": candidates}


def _token(text: str) -> TokenText:
    return {"token": text, "bytes": None if "�" in text else list(text.encode("utf-8"))}

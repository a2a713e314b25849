"""POST /v1/completions."""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, StrictBool, StrictInt, StrictStr

from tunesmith.data.refusal import Refusal
from tunesmith.data.rows.messages import read_text
from tunesmith.inference import rendering
from tunesmith.inference.types import Sampling, TokenLogprob
from tunesmith.serving.engine.protocol import EngineBusy, EngineRejected, EngineUnavailable
from tunesmith.serving.engine.rejections import engine_rejections
from tunesmith.serving.errors import ApiError
from tunesmith.serving.objects.completion import (
    Completion,
    CompletionChoice,
    CompletionHeader,
    CompletionLogprobs,
)
from tunesmith.serving.objects.usage import Usage, usage_object
from tunesmith.serving.routes.context import CallerDep, Server, ServerDep
from tunesmith.serving.routes.generation import (
    MAX_CHOICES,
    GenerationRequest,
    Inference,
    as_api_error,
    deidentified_for,
    event_stream,
    find_inference,
    generate_all,
    json_response,
)

router = APIRouter(prefix="/v1", tags=["inference"])

DEFAULT_MAX_TOKENS = 16
Tokens = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**31)]], Field(min_length=1, fail_fast=True)]
"""Token ids. Validation stops at the first error: pydantic records every error, and a body may contain millions."""
Texts = Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_CHOICES)]
Prompt = StrictStr | Tokens | Texts | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_CHOICES)]


class CompletionRequest(GenerationRequest):
    UNSUPPORTED: ClassVar[dict[str, str]] = {"suffix": "text can be continued, but not infilled."}

    prompt: Prompt
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    echo: StrictBool | None = None
    best_of: StrictInt | None = None

    def require_supported(self) -> None:
        self.require_known()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ApiError(
                "'best_of' is not supported: request 'n' completions and choose among them.",
                param="best_of",
                code="unsupported_parameter",
            )
        if self.max_tokens == 0 and not self.echo:
            raise ApiError("'max_tokens' can only be 0 with 'echo'.", param="max_tokens")
        if len(self.prompts()) * (self.n or 1) > MAX_CHOICES:
            raise ApiError(f"'n' times the number of prompts must not exceed {MAX_CHOICES}.", param="n")

    def prompts(self) -> list[str | list[int]]:
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


@router.post("/completions", summary="Create a completion", response_model=None)
async def create_completion(
    request: Request, body: CompletionRequest, server: ServerDep, caller: CallerDep
) -> Response:
    """Continue a prompt, as one object or as a stream of chunks."""
    body.require_supported()
    inference = await find_inference(server, caller, body.model)
    prompts = [await _tokens(inference, await _deidentified(server, prompt)) for prompt in body.prompts()]
    generation = _Generation(inference, body, prompts)
    if body.stream:
        return await event_stream(generation.chunks())
    return await json_response(request, generation.response())


async def _deidentified(server: Server, prompt: str | list[int]) -> str | list[int]:
    if isinstance(prompt, str):
        return (await deidentified_for(server, {"prompt": prompt}))["prompt"]
    if server.settings.deidentify is not None:
        raise ApiError(
            "This server de-identifies prompts, which is not possible for token ids: send the prompt as text.",
            param="prompt",
            code="unsupported_value",
        )
    return prompt


async def _tokens(inference: Inference, prompt: str | list[int]) -> list[int]:
    try:
        if not isinstance(prompt, str):
            with engine_rejections():
                rendering.require_room(len(prompt), inference.target)
            return prompt
        tokens = await inference.engine.tokenize(inference.target, read_text(prompt, "prompt"))
    except Refusal as refusal:
        raise ApiError(f"{refusal.reason}; {refusal.remedy}", param="prompt") from refusal
    except EngineRejected as refused:
        raise ApiError(refused.message, param="prompt", code=refused.code) from refused
    if not tokens:
        raise ApiError("The prompt is empty: there is nothing to continue.", param="prompt")
    return tokens


class _Choice:
    """One choice of a response. offset: of the next token in the text, the echoed prompt included."""

    def __init__(self, index: int):
        self.index, self.text, self.offset = index, "", 0
        self.logprobs = _no_logprobs()
        self.num_tokens = 0
        self.finish: str | None = None


class _Generation:
    """Generates the choices of one request; those of the first prompt come first."""

    def __init__(self, inference: Inference, body: CompletionRequest, prompts: Sequence[list[int]]):
        self.inference, self.body, self.prompts = inference, body, prompts
        self.tokenizer = rendering.tokenizer_of(rendering.tokenizer_dir(inference.target))
        limit = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        self.requests: list[tuple[list[int], Sampling]] = [
            (prompt, body.sampling(index, max_new_tokens=limit, logprobs=body.logprobs))
            for prompt in prompts
            for index in range(body.n or 1)
        ]
        self.choices = [_Choice(index) for index in range(len(self.requests))]
        self.head: CompletionHeader = {
            "id": f"cmpl-{secrets.token_hex(14)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": None,
        }

    async def response(self) -> Completion:
        async for _ in self._changes():
            pass
        choices = [self._choice(choice, choice.text, choice.logprobs, choice.finish) for choice in self.choices]
        return {**self.head, "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncGenerator[Completion, None]:
        async for choice, text, logprobs in self._changes():
            yield self._chunk(self._choice(choice, text, logprobs, choice.finish))
        if self.body.wants_usage():
            yield {**self.head, "choices": [], "usage": self._usage()}

    async def _changes(self) -> AsyncGenerator[tuple[_Choice, str, CompletionLogprobs], None]:
        """Yield (choice, new text, new log-probabilities)."""
        if self.body.echo:
            for choice, (text, logprobs) in zip(self.choices, await self._echoes(), strict=True):
                if self.body.max_tokens == 0:
                    choice.finish = "length"
                yield choice, text, self._add(choice, text, logprobs)
        if self.body.max_tokens == 0:
            return
        async for index, chunk in generate_all(self.inference, self.requests):
            choice = self.choices[index]
            choice.num_tokens, choice.finish = chunk.completion_tokens, chunk.finish
            yield choice, chunk.text, self._add(choice, chunk.text, chunk.logprobs)

    async def _echoes(self) -> list[tuple[str, list[TokenLogprob]]]:
        """(text, log-probabilities) of the prompt of each choice; the first token's log-probability is NaN."""
        echoes = []
        for prompt in self.prompts:
            text = self.tokenizer.decode(prompt)
            logprobs: list[TokenLogprob] = []
            if self.body.logprobs is not None:
                try:
                    async with asyncio.timeout(self.inference.timeout_s):
                        rest = await self.inference.engine.prompt_logprobs(
                            self.inference.target, prompt, self.body.logprobs, self.inference.caller
                        )
                except (EngineUnavailable, EngineBusy, EngineRejected, TimeoutError) as error:
                    raise as_api_error(error, self.inference) from error
                first = TokenLogprob(prompt[0], self.tokenizer.token_text(prompt[0]), math.nan)
                logprobs = [first, *rest]
            echoes += [(text, logprobs)] * (self.body.n or 1)
        return echoes

    def _add(self, choice: _Choice, text: str, logprobs: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """Append text and log-probabilities to a choice; returns the log-probabilities in the API's format."""
        added = _no_logprobs()
        for logprob in logprobs:
            unknown = math.isnan(logprob.logprob)
            added["tokens"].append(logprob.text)
            added["token_logprobs"].append(None if unknown else max(logprob.logprob, -9999.0))
            candidates = {token: max(value, -9999.0) for _, token, value in logprob.top}
            added["top_logprobs"].append(None if unknown else candidates)
            added["text_offset"].append(choice.offset)
            choice.offset += len(logprob.text)
        choice.text += text
        choice.logprobs["tokens"] += added["tokens"]
        choice.logprobs["token_logprobs"] += added["token_logprobs"]
        choice.logprobs["top_logprobs"] += added["top_logprobs"]
        choice.logprobs["text_offset"] += added["text_offset"]
        return added

    def _choice(self, choice: _Choice, text: str, logprobs: CompletionLogprobs, finish: str | None) -> CompletionChoice:
        shown = None if self.body.logprobs is None else logprobs
        return {"index": choice.index, "text": text, "logprobs": shown, "finish_reason": finish}

    def _chunk(self, choice: CompletionChoice) -> Completion:
        chunk: Completion = {**self.head, "choices": [choice]}
        if self.body.wants_usage():
            chunk["usage"] = None
        return chunk

    def _usage(self) -> Usage:
        return usage_object(sum(map(len, self.prompts)), sum(choice.num_tokens for choice in self.choices))


def _no_logprobs() -> CompletionLogprobs:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

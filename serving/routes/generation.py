"""Shared by chat completions and completions: sampling parameters, concurrent generation of several choices, and
responses as one object or as server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from anyio import to_thread
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from tunesmith.data.deidentification.deidentify import deidentified
from tunesmith.inference.grammar import Grammar
from tunesmith.inference.types import Chunk, Sampling, Target
from tunesmith.serving.engine.protocol import Engine, EngineBusy, EngineRejected, EngineUnavailable
from tunesmith.serving.errors import ApiError
from tunesmith.serving.metrics import Metrics
from tunesmith.serving.routes.context import Caller, Server, engine_of
from tunesmith.serving.targets import find_target

MAX_CHOICES = 128
MAX_STOPS = 4
MAX_BIASES = 1 << 14
"""Limit of `logit_bias` entries: they are sent to the inference process once per choice."""

Prompt = TypeVar("Prompt", bound=Mapping[str, object])
Stop = Annotated[StrictStr, Field(min_length=1, max_length=1024)]


@dataclass(frozen=True)
class Inference:
    """Engine and model of a request. caller: for fair scheduling. timeout_s: for a complete response. retry_after_s:
    `Retry-After` while the engine is unavailable."""

    engine: Engine
    target: Target
    caller: str
    timeout_s: float
    retry_after_s: float
    metrics: Metrics


async def find_inference(server: Server, caller: Caller, model: str) -> Inference:
    """Find the model. Raises ApiError: 404 (`model_not_found`) if the caller has no such model, 503 without engine."""
    target = await to_thread.run_sync(find_target, server.settings, server.store, caller.organization, model)
    queue_key = f"{caller.organization}/{caller.key_id or ''}"
    settings = server.settings
    return Inference(
        engine_of(server),
        target,
        queue_key,
        settings.limits.generation_timeout_s,
        settings.retry_after_s,
        server.metrics,
    )


async def deidentified_for(server: Server, prompt: Prompt) -> Prompt:
    """The prompt, de-identified like the training rows if the server's settings require it."""
    settings = server.settings.deidentify
    if settings is None:
        return prompt
    result, _ = await to_thread.run_sync(deidentified, prompt, settings)
    return result


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None
    """Ignored: chunks are not padded."""


class GenerationRequest(BaseModel):
    """Parameters of both routes. `require_known` rejects unknown parameters by name."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    UNSUPPORTED: ClassVar[dict[str, str]] = {}
    """Parameters of the hosted API that this server lacks: the reason, and what to do instead."""

    model: Annotated[StrictStr, Field(min_length=1, max_length=512)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[StrictStr, Any] | None = None
    """Validated by `_biases`, which stops at the first error: pydantic records every error, and a body may contain
    millions."""
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: StrictStr | None = None
    """Ignored."""

    def require_known(self) -> None:
        """Raises ApiError for an unknown parameter, or an unsupported one that would change the response."""
        for name, value in (self.model_extra or {}).items():
            if name in self.UNSUPPORTED and value is None:
                continue
            reason = self.UNSUPPORTED.get(name)
            if reason is None:
                raise ApiError(f"Unrecognized request argument supplied: {name[:100]}", param=name[:100])
            raise ApiError(f"'{name}' is not supported: {reason}", param=name, code="unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
            )

    def sampling(
        self,
        index: int,
        *,
        max_new_tokens: int | None,
        logprobs: int | None,
        grammar: Grammar | None = None,
        shown: tuple[int, ...] = (),
    ) -> Sampling:
        """Sampling parameters of one choice; with a seed, each choice gets a different one. shown: special tokens whose
        text is part of the response."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=tuple(stops),
            seed=None if self.seed is None else (self.seed + index) % 2**63,
            logprobs=logprobs,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self._biases(),
            grammar=grammar,
            shown_tokens=shown,
        )

    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def _biases(self) -> dict[int, float]:
        biases = self.logit_bias or {}
        if len(biases) > MAX_BIASES:
            raise ApiError(f"'logit_bias' has more than {MAX_BIASES} tokens.", param="logit_bias")
        for token, bias in biases.items():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise ApiError(f"'logit_bias' has the key {token[:40]!r}; keys must be token ids.", param="logit_bias")
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
                raise ApiError(
                    f"'logit_bias.{token}' must be a number between -100 and 100.", param=f"logit_bias.{token}"
                )
        return {int(token): float(bias) for token, bias in biases.items()}


async def generate_all(
    inference: Inference, requests: Sequence[tuple[Sequence[int], Sampling]]
) -> AsyncGenerator[tuple[int, Chunk], None]:
    """Generate all choices concurrently; yields (index of the choice, chunk) as chunks arrive.

    requests: (prompt, sampling) of each choice. Closing the generator cancels the rest. Raises ApiError for errors of
    the engine.
    """
    results: asyncio.Queue[tuple[int, Chunk] | BaseException | None] = asyncio.Queue()

    metrics = inference.metrics

    async def run(number: int, prompt: Sequence[int], sampling: Sampling) -> None:
        num_tokens = 0
        metrics.generations.inc()
        try:
            async with contextlib.aclosing(
                inference.engine.generate(inference.target, prompt, sampling, inference.caller)
            ) as chunks:
                async for chunk in chunks:
                    num_tokens = max(num_tokens, chunk.completion_tokens)
                    results.put_nowait((number, chunk))
            results.put_nowait(None)
        except Exception as error:
            results.put_nowait(error)
        finally:
            metrics.generations.dec()
            metrics.prompt_tokens.inc(len(prompt) if num_tokens else 0)
            metrics.generated_tokens.inc(num_tokens)

    tasks = [asyncio.create_task(run(number, *request)) for number, request in enumerate(requests)]
    deadline = asyncio.get_running_loop().time() + inference.timeout_s
    open_tasks = len(tasks)
    try:
        while open_tasks:
            async with asyncio.timeout_at(deadline):
                result = await results.get()
            if result is None:
                open_tasks -= 1
            elif isinstance(result, BaseException):
                raise result
            else:
                yield result
    except (EngineUnavailable, EngineBusy, EngineRejected, TimeoutError) as error:
        raise as_api_error(error, inference) from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def as_api_error(error: BaseException, inference: Inference) -> ApiError:
    if isinstance(error, EngineRejected):
        return ApiError(error.message, code=error.code, param=error.param)
    if isinstance(error, (EngineBusy, EngineUnavailable)):
        busy = isinstance(error, EngineBusy)
        message = f"The engine is overloaded: {error} Try again later." if busy else str(error)
        code = "engine_overloaded" if busy else "engine_unavailable"
        wait_s = inference.retry_after_s
        return ApiError(message, status=503, type="server_error", code=code, retry_after_s=wait_s)
    message = f"The request exceeded the time limit of {inference.timeout_s:g} s."
    return ApiError(message, status=504, type="server_error", code="request_timeout")


async def json_response(request: Request, response: Awaitable[Mapping[str, object]]) -> Response:
    """A JSON response. If the client disconnects first, generation is cancelled."""
    work = asyncio.ensure_future(response)
    disconnect = asyncio.ensure_future(_until_disconnect(request))
    try:
        await asyncio.wait((work, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)  # nginx's status for a disconnected client; nobody receives it
        return JSONResponse(work.result())
    finally:
        for task in (work, disconnect):
            task.cancel()
        await asyncio.gather(work, disconnect, return_exceptions=True)


async def event_stream(events: AsyncGenerator[Mapping[str, object], None]) -> Response:
    """Server-sent events. An error before the first event is an ordinary error response, a later one an event."""
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_lines(first, events), media_type="text/event-stream", headers=headers)


async def _lines(first: Mapping[str, object], events: AsyncGenerator[Mapping[str, object], None]) -> AsyncIterator[str]:
    async with contextlib.aclosing(events):
        yield _line(first)
        try:
            async for event in events:
                yield _line(event)
        except ApiError as error:
            yield _line(error.body())
            return
    yield "data: [DONE]\n\n"


def _line(event: Mapping[str, object]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

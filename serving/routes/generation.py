"""What chat and plain completions share: the words that shape an answer, running several answers at once, and sending
them whole or as a stream of events."""

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
from tunesmith.serving.routes.context import Caller, Server, engine_of
from tunesmith.serving.targets import find_target

MAX_CHOICES = 128
MAX_STOPS = 4
MAX_BIASES = 1 << 14
"""Each choice takes its own copy to the inference process."""

Prompt = TypeVar("Prompt", bound=Mapping[str, object])
Stop = Annotated[StrictStr, Field(min_length=1, max_length=1024)]


@dataclass(frozen=True)
class Inference:
    """What a request's answers come from. caller: who asks, for fair turns. timeout_s: of a whole answer.
    retry_after_s: what a caller is told where the engine cannot answer now."""

    engine: Engine
    target: Target
    caller: str
    timeout_s: float
    retry_after_s: float


async def find_inference(server: Server, caller: Caller, model: str) -> Inference:
    """Raises ApiError (404, `model_not_found`) where the caller has no such model, 503 where nothing answers chats."""
    target = await to_thread.run_sync(find_target, server.settings, server.store, caller.organization, model)
    who = f"{caller.organization}/{caller.key_id or ''}"
    settings = server.settings
    return Inference(engine_of(server), target, who, settings.limits.generation_timeout_s, settings.retry_after_s)


async def deidentified_for(server: Server, prompt: Prompt) -> Prompt:
    """The prompt, with surrogates where the server's settings say so: as the rows of a job are trained."""
    settings = server.settings.deidentify
    if settings is None:
        return prompt
    cleaned, _ = await to_thread.run_sync(deidentified, prompt, settings)
    return cleaned


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None
    """Taken without effect: nothing is padded."""


class Shaping(BaseModel):
    """The parameters of both routes. Names that are not known are told by name (`require_known`)."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    REFUSED: ClassVar[dict[str, str]] = {}
    """Parameters that the hosted API has and this server does not: why, and what to do instead."""

    model: Annotated[StrictStr, Field(min_length=1, max_length=512)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[StrictStr, Any] | None = None
    """Looked at by `_biases`, up to the first that is wrong: pydantic keeps a finding for each, and a body holds
    millions."""
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: StrictStr | None = None
    """Taken without effect."""

    def require_known(self) -> None:
        """Raises ApiError where a parameter would be ignored that changes the answer, or is known to nobody."""
        for name, value in (self.model_extra or {}).items():
            if name in self.REFUSED and value is None:
                continue
            why = self.REFUSED.get(name)
            if why is None:
                raise ApiError(f"Unrecognized request argument supplied: {name[:100]}", param=name[:100])
            raise ApiError(f"'{name}' is not supported by this server: {why}", param=name, code="unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
            )

    def sampling(
        self, index: int, *, max_new_tokens: int | None, logprobs: int | None, grammar: Grammar | None = None
    ) -> Sampling:
        """For the choice of this number: with a seed, every choice has one of its own."""
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
        )

    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def _biases(self) -> dict[int, float]:
        biases = self.logit_bias or {}
        if len(biases) > MAX_BIASES:
            raise ApiError(f"'logit_bias' has more than {MAX_BIASES} tokens.", param="logit_bias")
        for token, bias in biases.items():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise ApiError(f"'logit_bias' has the key {token[:40]!r}: its keys are token ids.", param="logit_bias")
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
                raise ApiError(f"'logit_bias.{token}' must be a number from -100 to 100.", param=f"logit_bias.{token}")
        return {int(token): float(bias) for token, bias in biases.items()}


async def choices(
    inference: Inference, asked: Sequence[tuple[Sequence[int], Sampling]]
) -> AsyncGenerator[tuple[int, Chunk], None]:
    """(number of the choice, chunk) of all answers, as they come. Closing it early frees their places. The contract's
    ApiErrors for whatever the engine says."""
    arrived: asyncio.Queue[tuple[int, Chunk] | BaseException | None] = asyncio.Queue()

    async def run(number: int, prompt: Sequence[int], sampling: Sampling) -> None:
        try:
            async with contextlib.aclosing(
                inference.engine.generate(inference.target, prompt, sampling, inference.caller)
            ) as chunks:
                async for chunk in chunks:
                    arrived.put_nowait((number, chunk))
            arrived.put_nowait(None)
        except Exception as error:
            arrived.put_nowait(error)

    tasks = [asyncio.create_task(run(number, *one)) for number, one in enumerate(asked)]
    deadline = asyncio.get_running_loop().time() + inference.timeout_s
    open_tasks = len(tasks)
    try:
        while open_tasks:
            async with asyncio.timeout_at(deadline):
                came = await arrived.get()
            if came is None:
                open_tasks -= 1
            elif isinstance(came, BaseException):
                raise came
            else:
                yield came
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
        words = f"The engine is overloaded: {error} Try again later." if busy else str(error)
        code = "engine_overloaded" if busy else "engine_unavailable"
        wait_s = inference.retry_after_s
        return ApiError(words, status=503, type="server_error", code=code, retry_after_s=wait_s)
    words = f"The answer took longer than the server allows ({inference.timeout_s:g} s)."
    return ApiError(words, status=504, type="server_error", code="request_timeout")


async def whole(request: Request, made: Awaitable[Mapping[str, object]]) -> Response:
    """The answer as JSON. Where the client goes first, the work is given up and its place is freed."""
    work = asyncio.ensure_future(made)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)  # nobody reads it; the number is nginx's for this
        return JSONResponse(work.result())
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def streamed(events: AsyncGenerator[Mapping[str, object], None]) -> Response:
    """Server-sent events. What goes wrong before the first is an answer of its own, later it is an event."""
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


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

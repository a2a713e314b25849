"""`Engine` on top of vLLM: prompts are rendered here, vLLM generates.

Written against the documentation and parts of the source code of vLLM (up to 0.33). Not tested with vLLM itself.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference import rendering
from tunesmith.inference.types import Chunk, Sampling, Target, TokenLogprob, too_long
from tunesmith.serving.engine.protocol import EngineBusy, EngineRejected, EngineUnavailable
from tunesmith.serving.engine.rejections import as_rejection, engine_rejections
from tunesmith.serving.engine.vllm.messages import Reader, completion_request, logprobs_request, token_logprobs
from tunesmith.serving.engine.vllm.server import VllmOptions, VllmServer


class VllmEngine:
    """`Engine` with one vLLM server per base model. urls: of external servers, by the directory of the base; the other
    servers are started with the first request."""

    def __init__(self, options: VllmOptions, urls: dict[Path, str] | None = None):
        self.options, self.urls = options, urls or {}
        self.servers: dict[Path, VllmServer] = {}
        self._open = 0

    @property
    def is_running(self) -> bool:
        return any(server.is_connected for server in self.servers.values())

    async def render(
        self,
        target: Target,
        messages: Sequence[dict[str, Any]],
        tools: list[Any] | None,
        values: Mapping[str, Any] | None = None,
    ) -> list[int]:
        with engine_rejections():
            splits = self.options.split_special_tokens
            return await asyncio.to_thread(
                rendering.render_target, target, messages, tools, split_special_tokens=splits, values=values
            )

    async def tokenize(self, target: Target, text: str) -> list[int]:
        with engine_rejections():
            directory, splits = rendering.tokenizer_dir(target), self.options.split_special_tokens
            return await asyncio.to_thread(rendering.tokenize, directory, text, split_special_tokens=splits)

    async def generate(
        self, target: Target, prompt: Sequence[int], sampling: Sampling, caller: str = ""
    ) -> AsyncGenerator[Chunk, None]:
        tokenizer = _tokenizer(target)
        server = self._server(target.base)
        with self._request():
            async with server.using(target.adapter) as model:
                limit = _limit(server.context, len(prompt), sampling.max_new_tokens)
                request = completion_request(model, prompt, sampling, limit, tokenizer.stop_token_ids)
                reader = Reader(tokenizer, sampling)
                try:
                    async with contextlib.aclosing(server.events(request)) as events:
                        async for event in events:
                            if (chunk := reader.add(event)) is None:
                                continue
                            yield chunk
                            if chunk.finish is not None:
                                return
                except EngineRejected as rejected:
                    if sampling.grammar is not None and rejected.code is None:
                        rejected.param = sampling.grammar.schemas[0][0]
                    raise
        raise EngineUnavailable("The inference server ended the response early.")

    async def prompt_logprobs(
        self, target: Target, prompt: Sequence[int], top: int, caller: str = ""
    ) -> list[TokenLogprob]:
        tokenizer = _tokenizer(target)
        server = self._server(target.base)
        with self._request():
            async with server.using(target.adapter) as model:
                if len(prompt) > server.context:
                    raise as_rejection(too_long(server.context, len(prompt), 0))
                response = await server.complete(logprobs_request(model, prompt, top))
        return token_logprobs(response["choices"][0]["logprobs"], top, tokenizer)

    async def unload(self, adapter: Path) -> None:
        rendering.evict(adapter)
        for server in self.servers.values():
            await server.unload(adapter)

    async def close(self) -> None:
        await asyncio.gather(*(server.close() for server in self.servers.values()))

    def _server(self, base: Path) -> VllmServer:
        if base not in self.servers:
            self.servers[base] = VllmServer(base, self.options, self.urls.get(base))
        return self.servers[base]

    @contextlib.contextmanager
    def _request(self):
        if self._open >= self.options.max_places + self.options.max_waiting:
            raise EngineBusy(f"{self._open} requests are already open.")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def _tokenizer(target: Target) -> Tokenizer:
    with engine_rejections():
        return rendering.tokenizer_of(rendering.tokenizer_dir(target))


def _limit(context: int, prompt: int, requested: int | None) -> int:
    """Maximum number of new tokens. Raises EngineRejected if the context is too short."""
    if prompt >= context or prompt + (requested or 1) > context:
        raise as_rejection(too_long(context, prompt, requested or 1))
    return requested or context - prompt

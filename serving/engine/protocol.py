"""Interface between the API and an inference engine. Does not import torch: the engine is a separate process."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunesmith.inference.types import Chunk, Sampling, Target, TokenLogprob


@dataclass(frozen=True)
class EngineOptions:
    """Options of the embedded engine.

    max_places: maximum number of concurrent generations. max_waiting: maximum number of queued requests. max_adapters,
    max_bases: maximum number in memory; the least recently used are unloaded. cache_tokens: capacity of the KV cache
    per base; None: a quarter of the free memory. hang_s: the process is restarted if it sends no heartbeat, or its work
    makes no progress, for that long. split_special_tokens: as in a recipe.
    """

    max_places: int = 32
    max_waiting: int = 1024
    max_adapters: int = 64
    max_bases: int = 2
    cache_tokens: int | None = None
    hang_s: float = 120.0
    split_special_tokens: bool = True


class EngineUnavailable(Exception):
    """The inference process has exited or does not respond; it is being restarted. HTTP status 503."""


class EngineBusy(Exception):
    """The queue of the engine is full. HTTP status 503."""


class EngineRejected(Exception):
    """The engine cannot serve the request: for example, the prompt exceeds the context, or the adapter does not fit the
    base. HTTP status 400. message, code, param: as in the API's error object."""

    def __init__(self, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.message, self.code, self.param = message, code, param


class Engine(Protocol):
    @property
    def is_running(self) -> bool:
        """Whether a process of the engine runs; processes start with the first request."""
        ...

    async def render(
        self,
        target: Target,
        messages: Sequence[dict[str, Any]],
        tools: list[Any] | None,
        values: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a chat prompt, rendered as in training. values: of variables of the chat template. Raises
        EngineRejected."""
        ...

    async def tokenize(self, target: Target, text: str) -> list[int]:
        """Token ids of a text to continue. Raises EngineRejected."""
        ...

    def generate(
        self, target: Target, prompt: Sequence[int], sampling: Sampling, caller: str = ""
    ) -> AsyncGenerator[Chunk, None]:
        """Stream the chunks of a response. Closing the generator early cancels the request. caller: for fair queuing.

        Raises EngineUnavailable, EngineBusy, EngineRejected."""
        ...

    async def prompt_logprobs(
        self, target: Target, prompt: Sequence[int], top: int, caller: str = ""
    ) -> list[TokenLogprob]:
        """Log-probabilities of every token of the prompt but the first, for `echo`.

        Raises EngineUnavailable, EngineBusy, EngineRejected."""
        ...

    async def unload(self, adapter: Path) -> None:
        """Free the memory of a deleted adapter."""
        ...

    async def close(self) -> None: ...

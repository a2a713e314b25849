"""What the API asks of an inference engine. No torch: the engine is a process of its own."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunesmith.inference.types import Chunk, Sampling, Target, TokenLogprob


@dataclass(frozen=True)
class EngineOptions:
    """Of the embedded engine. max_places: answers generated at once. max_waiting: requests that may wait for a place.
    max_adapters, max_bases: in memory at once; those used longest ago go. cache_tokens: that keys and values of one
    base are kept for; None: a quarter of the free memory."""

    max_places: int = 32
    max_waiting: int = 1024
    max_adapters: int = 64
    max_bases: int = 2
    cache_tokens: int | None = None


class EngineUnavailable(Exception):
    """The inference process died or does not answer; it is being started again. The API answers 503."""


class EngineBusy(Exception):
    """More requests wait than the engine lets wait. The API answers 503."""


class EngineRejected(Exception):
    """The engine cannot serve this: a prompt longer than the context, an adapter that does not fit. The API answers
    400 with the words. code, param: as in the API's errors."""

    def __init__(self, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.message, self.code, self.param = message, code, param


class Engine(Protocol):
    async def render(self, target: Target, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> list[int]:
        """Token ids of the prompt for an answer, as training renders a row's prefix. Raises EngineRejected."""
        ...

    async def tokenize(self, target: Target, text: str) -> list[int]:
        """Token ids of a text that a model shall continue. Raises EngineRejected."""
        ...

    def generate(
        self, target: Target, prompt: Sequence[int], sampling: Sampling, caller: str = ""
    ) -> AsyncGenerator[Chunk, None]:
        """Chunks as they come. Closing the generator early frees the place. caller: whose turn it is, where many wait.
        Raises EngineUnavailable, EngineBusy, EngineRejected."""
        ...

    async def prompt_logprobs(
        self, target: Target, prompt: Sequence[int], top: int, caller: str = ""
    ) -> list[TokenLogprob]:
        """For `echo`: of every token of the prompt but the first.

        Raises EngineUnavailable, EngineBusy, EngineRejected."""
        ...

    async def unload(self, adapter: Path) -> None:
        """The adapter is deleted: its memory is freed."""
        ...

    async def close(self) -> None: ...

"""What the API asks of an inference engine, and what it is told. No torch: the engine is a process of its own."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tunesmith.serving.engine.form import Form


@dataclass(frozen=True)
class Target:
    """The weights that a `model` name means. base: directory of the base. adapter: directory of an exported adapter
    over it, or None. Targets of one base share its weights in memory."""

    base: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class Sampling:
    """max_tokens: None as many as the context holds. temperature 0 takes the likeliest token. logprobs: how many
    alternatives to tell for each token; None tells nothing. seed: None draws one. stop: texts that end an answer and
    are not part of it. form: what the answer must look like; None: anything."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    form: Form | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its natural log-probability as the model gives it (before temperature, penalties and biases), and the
    likeliest in its place (token id, text, log-probability)."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What came since the last piece: text that later tokens cannot change any more, and the tokens behind it.

    token_ids, logprobs: without the token that ends an answer, and without those whose text a stop string cut off.
    finish: in the last piece. completion_tokens: generated so far, those of a stop string too.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Literal["stop", "length"] | None = None
    completion_tokens: int = 0


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


class EngineGone(Exception):
    """The inference process died or does not answer; it is being started again. The API answers 503."""


class EngineBusy(Exception):
    """More requests wait than the engine lets wait. The API answers 503."""


class EngineRefused(Exception):
    """The engine cannot serve this: a prompt longer than the context, an adapter that does not fit. The API answers
    400 with the words. code, param: as in the API's errors."""

    def __init__(self, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.message, self.code, self.param = message, code, param


def too_long(context: int, prompt: int, asked: int) -> EngineRefused:
    return EngineRefused(
        f"This model's maximum context length is {context} tokens. However, you requested {prompt + asked} tokens "
        f"({prompt} in the prompt, {asked} in the completion). Please reduce the length of the prompt or completion.",
        "context_length_exceeded",
    )


class Engine(Protocol):
    async def render(self, target: Target, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> list[int]:
        """Token ids of the prompt for an answer, as training renders a row's prefix. Raises EngineRefused."""
        ...

    async def tokenize(self, target: Target, text: str) -> list[int]:
        """Token ids of a text that a model shall continue. Raises EngineRefused."""
        ...

    def generate(
        self, target: Target, prompt: Sequence[int], sampling: Sampling, caller: str = ""
    ) -> AsyncGenerator[Piece, None]:
        """Pieces as they come. Closing the generator early frees the place. caller: whose turn it is, where many wait.
        Raises EngineGone, EngineBusy, EngineRefused."""
        ...

    async def prompt_logprobs(
        self, target: Target, prompt: Sequence[int], top: int, caller: str = ""
    ) -> list[TokenLogprob]:
        """For `echo`: of every token of the prompt but the first. Raises EngineGone, EngineBusy, EngineRefused."""
        ...

    async def forget(self, adapter: Path) -> None:
        """The adapter is deleted: its memory is freed."""
        ...

    async def close(self) -> None: ...

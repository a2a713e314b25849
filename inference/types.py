"""Requests and responses of generation. Free of torch: the API process reads and writes them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tunesmith.inference.grammar import Form


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

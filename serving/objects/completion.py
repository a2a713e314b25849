"""The API's (text) completion; a chunk of a streamed one has the same form."""

from collections.abc import Sequence
from typing import Literal, NotRequired, TypedDict

from tunesmith.serving.objects.usage import Usage


class CompletionLogprobs(TypedDict):
    """One entry per token in each list; None for the first token of a prompt, which has no probability.
    text_offset: of the token in the text, in characters, the echoed prompt included."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class CompletionHeader(TypedDict):
    """What a completion and all chunks of a streamed one have in common."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None


class Completion(CompletionHeader):
    """usage: in a chunk None, or absent unless the request asks for it."""

    choices: Sequence[CompletionChoice]
    usage: NotRequired[Usage | None]

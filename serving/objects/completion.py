"""Text completion object of the API; the chunks of a streamed completion have the same fields."""

from collections.abc import Sequence
from typing import Literal, NotRequired, TypedDict

from tunesmith.serving.objects.usage import Usage


class CompletionLogprobs(TypedDict):
    """One entry per token in each list; None for the first token of a prompt, which has no log-probability.
    text_offset: position of the token in the text in characters, including an echoed prompt."""

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
    """Fields shared by a completion and the chunks of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None


class Completion(CompletionHeader):
    """usage: in a chunk, None, or absent unless requested."""

    choices: Sequence[CompletionChoice]
    usage: NotRequired[Usage | None]

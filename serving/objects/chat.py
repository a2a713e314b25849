"""The API's chat completion, and a chunk of a streamed one."""

from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

from tunesmith.serving.objects.usage import Usage


class FunctionCall(TypedDict):
    """arguments: JSON, as the model wrote it."""

    name: str
    arguments: str


class MessageToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCall


class DeltaToolCall(MessageToolCall):
    index: int


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    annotations: Sequence[Any]
    tool_calls: NotRequired[Sequence[MessageToolCall]]


class MessageDelta(TypedDict, total=False):
    """What a chunk adds to a message."""

    role: Literal["assistant"]
    content: str
    refusal: str | None
    tool_calls: Sequence[DeltaToolCall]


class TokenText(TypedDict):
    """bytes: None where the token is only a part of a character."""

    token: str
    bytes: Sequence[int] | None


class CandidateLogprob(TokenText):
    logprob: float


class GeneratedTokenLogprob(CandidateLogprob):
    top_logprobs: Sequence[CandidateLogprob]


class ChoiceLogprobs(TypedDict):
    content: Sequence[GeneratedTokenLogprob]
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: str | None


class ChatChunkChoice(TypedDict):
    index: int
    delta: MessageDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: str | None


class ChatHeader(TypedDict):
    """What a completion and all chunks of a streamed one have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None


class ChatCompletion(ChatHeader):
    object: Literal["chat.completion"]
    choices: Sequence[ChatChoice]
    usage: Usage


class ChatCompletionChunk(ChatHeader):
    """usage: None in all chunks but the last, where the request asks for it."""

    object: Literal["chat.completion.chunk"]
    choices: Sequence[ChatChunkChoice]
    usage: NotRequired[Usage | None]

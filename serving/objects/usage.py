"""Token counts of a request, as the API reports them."""

from typing import NotRequired, TypedDict


class CompletionDetails(TypedDict):
    reasoning_tokens: int


class Usage(TypedDict):
    """completion_tokens_details: for models that think."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: NotRequired[CompletionDetails]


def usage_object(prompt_tokens: int, completion_tokens: int, reasoning_tokens: int | None = None) -> Usage:
    """reasoning_tokens: among the completion's; None: the model does not think."""
    usage: Usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if reasoning_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return usage

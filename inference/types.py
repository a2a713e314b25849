"""Requests and responses of generation. Does not import torch: the API process uses them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.inference.grammar import Grammar

MAX_CONTEXT = 1 << 20
"""Maximum tokens of a sequence if the model does not state its number of positions."""


@dataclass(frozen=True)
class Target:
    """The weights that a `model` name refers to. base: directory of the base model. adapter: directory of an exported
    adapter, or None. Targets with the same base share its weights in memory."""

    base: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters.

    max_new_tokens: None: up to the context length. temperature: 0: greedy decoding; above 0: samples from the smallest
    set of tokens whose probabilities reach top_p. seed: None: random. stop: strings that end a response and are not
    part of it. logprobs: number of alternatives reported per token; None: no log-probabilities (batched engine only).
    presence_penalty, frequency_penalty, logit_bias: as in the OpenAI API. grammar: that the response must match; None:
    unconstrained. shown_tokens: special tokens whose text is part of the response; decoding leaves out the others.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    grammar: Grammar | None = None
    shown_tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A complete response. tokens: as generated, without the stop token; the tokens of a stop string are included, its
    text is not. stopped: False if it was cut off by max_new_tokens or the context length."""

    text: str
    tokens: list[int]
    stopped: bool


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its natural log-probability before temperature, penalties and biases, and the most likely alternatives
    (token id, text, log-probability)."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """Increment of a streamed response: text that later tokens cannot change, and its tokens.

    token_ids, logprobs: without the stop token, and without tokens whose text a stop string cut off. finish: set in the
    last chunk. completion_tokens: generated so far, including those of a stop string.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Literal["stop", "length"] | None = None
    completion_tokens: int = 0


class RequestRejected(Exception):
    """A request that cannot be served, regardless of load. The message is plain English; the API builds its own message
    from code and data.

    code                     data
    context_length_exceeded  context, prompt_tokens; completion_tokens: requested, or None for a prompt alone;
                             at_least: whether the prompt has more tokens than were counted
    empty_prompt
    unknown_token            token, vocabulary
    unusable_tokenizer
    unusable_template        the chat template cannot render the messages; parameter: it omits part of this one
    template_variable        the chat template does not read a variable; parameter: its place in the request
    special_token            a special token that can be neither text nor itself in the message that contains it
    unsupported_model        architecture, directory
    unsupported_attention    module: class name; reason
    unsupported_layers       architecture, directory
    invalid_schema           parameter, schema: name or None, reason
    unsupported_grammar      reason: grammars are not supported for this tokenizer
    broken_grammar           reason: occurred during generation
    missing_llguidance
    invalid_logits           the logits are NaN
    """

    def __init__(self, code: str, message: str, **data: object):
        super().__init__(message)
        self.code, self.message, self.data = code, message, data

    @classmethod
    def restore(cls, code: str, message: str, data: dict[str, Any]) -> "RequestRejected":
        """Return a rejection that another process reported."""
        return cls(code, message, **data)


def too_long(
    context: int, prompt_tokens: int, completion_tokens: int | None = None, *, at_least: bool = False
) -> RequestRejected:
    """The error with the code `context_length_exceeded`."""
    counted = f"more than {prompt_tokens:,}" if at_least else f"{prompt_tokens:,}"
    message = f"the prompt has {counted} tokens; the model's context is {context:,}"
    if completion_tokens:
        message = f"{message}: {completion_tokens:,} more do not fit"
    data = {"completion_tokens": completion_tokens, "at_least": at_least}
    return RequestRejected("context_length_exceeded", message, context=context, prompt_tokens=prompt_tokens, **data)

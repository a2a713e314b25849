"""Requests and responses of generation, free of torch: the API process reads and writes them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tunesmith.inference.grammar import Grammar

MAX_CONTEXT = 1 << 20
"""Tokens of a sequence at most, where the model does not say how many positions it has."""


@dataclass(frozen=True)
class Target:
    """The weights that a `model` name means. base: directory of the base. adapter: directory of an exported adapter
    over it, or None. Targets of one base share its weights in memory."""

    base: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated.

    max_new_tokens: None as many as the context holds. temperature: 0 takes the likeliest token; above 0 samples, from
    the smallest set of tokens whose probabilities reach top_p. seed: None draws one. stop: texts that end an answer and
    are not part of it. logprobs: how many alternatives to report for each token; None reports none (of the batched
    engine). presence_penalty, frequency_penalty, logit_bias: as in the OpenAI API. grammar: what the answer must match;
    None: anything.
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


@dataclass(frozen=True)
class Answer:
    """A whole answer. tokens: as generated, without the stop token; those of a stop string are there, and its text is
    not. stopped: false where it was cut off by max_new_tokens or the context."""

    text: str
    tokens: list[int]
    stopped: bool


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its natural log-probability as the model gives it (before temperature, penalties and biases), and the
    likeliest in its place (token id, text, log-probability)."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """What a streamed answer gained since the last chunk: text that later tokens cannot change, and the tokens behind
    it.

    token_ids, logprobs: without the token that ends an answer, and without those whose text a stop string cut off.
    finish: in the last chunk. completion_tokens: generated so far, those of a stop string too.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Literal["stop", "length"] | None = None
    completion_tokens: int = 0


class RequestRejected(Exception):
    """A request that cannot be served, whatever the load; others go on. The message is plain English; what serves the
    request over a network puts it into its own words, by code and data.

    code                     data
    context_length_exceeded  context, prompt_tokens; completion_tokens: that were asked for, None of a prompt by itself;
                             at_least: whether the prompt has more tokens than were counted
    empty_prompt
    unknown_token            token, vocabulary
    unusable_tokenizer
    unusable_template        the chat template cannot render the messages
    unsupported_model        architecture, directory
    unsupported_attention    module: its class
    unsupported_layers       architecture, directory
    invalid_schema           parameter, schema: its name or None, reason
    unsupported_grammar      reason: this model's tokens cannot be kept to any grammar
    broken_grammar           reason: found while the answer was generated
    missing_llguidance
    invalid_logits           they are not numbers
    """

    def __init__(self, code: str, message: str, **data: object):
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


def too_long(
    context: int, prompt_tokens: int, completion_tokens: int | None = None, *, at_least: bool = False
) -> RequestRejected:
    """See `context_length_exceeded`."""
    counted = f"more than {prompt_tokens}" if at_least else f"{prompt_tokens}"
    message = f"the prompt has {counted} tokens and the model's context {context}"
    if completion_tokens:
        message = f"{message}: {completion_tokens} more do not fit"
    data = {"completion_tokens": completion_tokens, "at_least": at_least}
    return RequestRejected("context_length_exceeded", message, context=context, prompt_tokens=prompt_tokens, **data)

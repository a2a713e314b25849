"""The sequences of a batch: generation, and log-probabilities of a prompt.

V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.kv_cache import Slot
from tunesmith.inference.sampling import Sampler, seeded_by_prompt
from tunesmith.inference.stop import StopScanner
from tunesmith.inference.text_stream import TextStream
from tunesmith.inference.types import Chunk, RequestRejected, Sampling, TokenLogprob

Output = Chunk | list[TokenLogprob] | RequestRejected
"""Output of a step for one sequence: a chunk of the response, log-probabilities of the prompt, or an error."""


class Sequence:
    """A sequence of the batch. tokens: prompt and generated tokens. slot: in the KV cache; None while waiting. adapter:
    directory, or "" for the base model. number: of the request."""

    def __init__(self, number: int, caller: str, adapter: str, prompt: list[int], tokenizer: Tokenizer):
        self.number, self.caller, self.adapter, self.tokenizer = number, caller, adapter, tokenizer
        self.tokens, self.prompt_length = list(prompt), len(prompt)
        self.slot: Slot | None = None
        self.ended = False

    def max_rows(self) -> int | None:
        """Maximum rows of one step; None: no limit."""
        return None

    def needs_logits(self, position: int) -> bool:
        """Whether the logits after the token at this position are needed."""
        raise NotImplementedError

    def take(self, position: int, logits_V: Tensor) -> list[Output]:
        """Process the logits (fp32, CPU) after the token at this position. Returns the new outputs."""
        raise NotImplementedError

    def num_uncached(self) -> int:
        """Number of tokens that are not in the cache yet."""
        assert self.slot is not None
        return len(self.tokens) - self.slot.length


@dataclass(frozen=True)
class _Generated:
    """A generated token. offset: length of the text before it."""

    token: int
    logprob: TokenLogprob | None
    offset: int


class Generation(Sequence):
    """Generates a response. limit: maximum number of new tokens. Raises RequestRejected if the grammar is not
    supported."""

    def __init__(
        self,
        number: int,
        caller: str,
        adapter: str,
        prompt: list[int],
        tokenizer: Tokenizer,
        sampling: Sampling,
        limit: int,
    ):
        super().__init__(number, caller, adapter, prompt, tokenizer)
        self.sampling, self.limit = sampling, limit
        self.sampler = Sampler(sampling, seeded_by_prompt(prompt, sampling.seed), tokenizer)
        self.scanner = StopScanner(sampling.stop)
        vocabulary: Any = tokenizer
        shown = {token: tokenizer.token_text(token) for token in sampling.shown_tokens}
        self.stream = TextStream(vocabulary, self._on_text, shown)
        self._pending: list[_Generated] = []
        self._num_seen = self._num_shown = 0
        """Characters of all tokens so far, and of the text that was output."""
        self._text = ""

    def needs_logits(self, position: int) -> bool:
        return position == len(self.tokens) - 1

    def take(self, position: int, logits_V: Tensor) -> list[Output]:
        try:
            token = self.sampler.pick(logits_V)
            if token in self.tokenizer.stop_token_ids:
                return [self._end("stop")]
            complete = self.sampler.accept(token)
        except RequestRejected as rejected:
            self.ended = True
            return [rejected]
        top, logprob = self.sampling.logprobs, None
        if top is not None:
            logprob = token_logprob(logits_V.log_softmax(-1), token, top, self.tokenizer)
        self.tokens.append(token)
        self._pending.append(_Generated(token, logprob, self._num_seen))
        self.stream.add(token)
        if self.scanner.stopped or complete:
            return [self._end("stop")]
        if len(self.tokens) - self.prompt_length >= self.limit:
            return [self._end("length")]
        return [self._chunk()] if self._text else []

    def _on_text(self, text: str) -> None:
        self._num_seen += len(text)
        shown = self.scanner.add(text)
        self._text += shown
        self._num_shown += len(shown)

    def _end(self, finish: Literal["stop", "length"]) -> Chunk:
        self.ended = True
        if not self.scanner.stopped:
            self.stream.finish()
        if not self.scanner.stopped:
            self._text += self.scanner.finish()
            self._num_shown = self._num_seen + 1  # output all tokens, including those without text
        return self._chunk("stop" if self.scanner.stopped else finish)

    def _chunk(self, finish: Literal["stop", "length"] | None = None) -> Chunk:
        """The text that is final, with the tokens whose text starts in it."""
        ready = [generated for generated in self._pending if generated.offset < self._num_shown]
        self._pending = self._pending[len(ready) :]
        text, self._text = self._text, ""
        return Chunk(
            text,
            tuple(generated.token for generated in ready),
            tuple(generated.logprob for generated in ready if generated.logprob is not None),
            finish,
            len(self.tokens) - self.prompt_length,
        )


class PromptLogprobs(Sequence):
    """Computes the log-probability of every token of a prompt but the first. top: number of alternatives."""

    def __init__(self, number: int, caller: str, adapter: str, prompt: list[int], tokenizer: Tokenizer, top: int):
        super().__init__(number, caller, adapter, prompt, tokenizer)
        self.top = top
        self.logprobs: list[TokenLogprob] = []
        self.ended = len(prompt) < 2

    def max_rows(self) -> int | None:
        return 128  # each row needs logits over the whole vocabulary

    def needs_logits(self, position: int) -> bool:
        return True

    def take(self, position: int, logits_V: Tensor) -> list[Output]:
        if position + 1 < len(self.tokens):
            following = self.tokens[position + 1]
            self.logprobs.append(token_logprob(logits_V.log_softmax(-1), following, self.top, self.tokenizer))
        self.ended = position + 2 >= len(self.tokens)
        return [self.logprobs] if self.ended else []


def token_logprob(logprobs_V: Tensor, token: int, top: int, tokenizer: Tokenizer) -> TokenLogprob:
    values, ids = logprobs_V.topk(min(top, len(logprobs_V)))
    likeliest = tuple(
        (number, tokenizer.token_text(number), value)
        for number, value in zip(ids.tolist(), values.tolist(), strict=True)
    )
    return TokenLogprob(token, tokenizer.token_text(token), float(logprobs_V[token]), likeliest)

"""One answer in the making: its tokens, its own generator, and its text as far as it is final.

V vocabulary.
"""

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference.generate import pick_token
from tunesmith.inference.generate_batch import seed_of
from tunesmith.inference.grammar_matcher import FormKeeper
from tunesmith.inference.kv_cache import Place
from tunesmith.inference.stop import StopScanner
from tunesmith.inference.text_stream import TextStream
from tunesmith.inference.types import EngineRefused, Piece, Sampling, TokenLogprob

Word = Piece | list[TokenLogprob] | EngineRefused
"""What a sequence tells: of its answer, of its prompt, or why it cannot go on."""


@dataclass(frozen=True)
class _Taken:
    """A token, and the length of the text before it."""

    token: int
    logprob: TokenLogprob | None
    offset: int


class Sequence:
    """A sequence of the batch. tokens: the prompt, and what was generated. place: of its keys and values; None while
    it waits. lane: the adapter's directory, or "" for the base. number: of its request."""

    def __init__(self, number: int, caller: str, lane: str, prompt: list[int], tokenizer: Tokenizer):
        self.number, self.caller, self.lane, self.tokenizer = number, caller, lane, tokenizer
        self.tokens, self.prompt_length = list(prompt), len(prompt)
        self.place: Place | None = None
        self.ended = False

    def most_rows(self) -> int | None:
        """Rows of one step at most; None as many as the step has room for."""
        return None

    def wants_row(self, position: int) -> bool:
        """Whether the logits behind the token at this position are needed."""
        raise NotImplementedError

    def take(self, position: int, logits_V: Tensor) -> list[Word]:
        """Logits (fp32, CPU) behind the token at this position; what there is to tell now."""
        raise NotImplementedError


class Answer(Sequence):
    """Generates. limit: tokens at most. Raises EngineRefused where the form that is asked for cannot be kept."""

    def __init__(
        self,
        number: int,
        caller: str,
        lane: str,
        prompt: list[int],
        tokenizer: Tokenizer,
        sampling: Sampling,
        limit: int,
    ):
        super().__init__(number, caller, lane, prompt, tokenizer)
        self.sampling, self.limit = sampling, limit
        seed = int.from_bytes(os.urandom(7), "little") if sampling.seed is None else sampling.seed
        self.generator = torch.Generator().manual_seed(seed_of(prompt, seed))
        self.counts: Counter[int] = Counter()
        self.scanner = StopScanner(sampling.stop)
        self.form = None if sampling.form is None else FormKeeper(tokenizer, sampling.form)
        vocabulary: Any = tokenizer
        self.stream = TextStream(vocabulary, self._on_text)
        self._taken: list[_Taken] = []
        self._seen = self._shown = 0
        self._text = ""

    def wants_row(self, position: int) -> bool:
        return position == len(self.tokens) - 1

    def take(self, position: int, logits_V: Tensor) -> list[Word]:
        told = self.sampling.logprobs
        try:
            token = pick_token(self._shaped(logits_V), self.sampling.temperature, self.sampling.top_p, self.generator)
            if token in self.tokenizer.stop_token_ids:
                return [self._end("stop")]
            whole = self.form is not None and self.form.take(token)
        except EngineRefused as refused:
            self.ended = True
            return [refused]
        logprob = None if told is None else token_logprob(logits_V.log_softmax(-1), token, told, self.tokenizer)
        self.tokens.append(token)
        self.counts[token] += 1
        self._taken.append(_Taken(token, logprob, self._seen))
        self.stream.add(token)
        if self.scanner.stopped or whole:
            return [self._end("stop")]
        if len(self.tokens) - self.prompt_length >= self.limit:
            return [self._end("length")]
        return [self._piece()] if self._text else []

    def _shaped(self, logits_V: Tensor) -> Tensor:
        """Penalties as the hosted API defines them, over what was generated; then biases; then the form."""
        wanted = self.sampling
        if (wanted.presence_penalty or wanted.frequency_penalty) and self.counts:
            seen_N = torch.tensor(list(self.counts))
            count_N = torch.tensor(list(self.counts.values()), dtype=torch.float32)
            logits_V = logits_V.clone()
            logits_V[seen_N] -= wanted.presence_penalty + wanted.frequency_penalty * count_N
        if wanted.logit_bias:
            logits_V = logits_V.clone()
            for token, bias in wanted.logit_bias.items():
                if 0 <= token < len(logits_V):
                    logits_V[token] += bias
        return logits_V if self.form is None else self.form.allowed(logits_V)

    def _on_text(self, text: str) -> None:
        self._seen += len(text)
        shown = self.scanner.add(text)
        self._text += shown
        self._shown += len(shown)

    def _end(self, finish: str) -> Piece:
        self.ended = True
        if not self.scanner.stopped:
            self.stream.finish()
        if not self.scanner.stopped:
            self._text += self.scanner.finish()
            self._shown = self._seen + 1  # all tokens are shown, those without text too
        return self._piece("stop" if self.scanner.stopped else finish)

    def _piece(self, finish: str | None = None) -> Piece:
        """What may be shown, with the tokens whose text begins in it."""
        ready = [taken for taken in self._taken if taken.offset < self._shown]
        self._taken = self._taken[len(ready) :]
        text, self._text = self._text, ""
        return Piece(
            text,
            tuple(taken.token for taken in ready),
            tuple(taken.logprob for taken in ready if taken.logprob is not None),
            finish,  # type: ignore[arg-type]
            len(self.tokens) - self.prompt_length,
        )


class Reading(Sequence):
    """Tells the log-probability of every token of a prompt but the first."""

    def __init__(self, number: int, caller: str, lane: str, prompt: list[int], tokenizer: Tokenizer, top: int):
        super().__init__(number, caller, lane, prompt, tokenizer)
        self.top = top
        self.read: list[TokenLogprob] = []
        self.ended = len(prompt) < 2

    def most_rows(self) -> int | None:
        return 128  # each with logits of the whole vocabulary

    def wants_row(self, position: int) -> bool:
        return True

    def take(self, position: int, logits_V: Tensor) -> list[Word]:
        if position + 1 < len(self.tokens):
            following = self.tokens[position + 1]
            self.read.append(token_logprob(logits_V.log_softmax(-1), following, self.top, self.tokenizer))
        self.ended = position + 2 >= len(self.tokens)
        return [self.read] if self.ended else []


def token_logprob(logprobs_V: Tensor, token: int, top: int, tokenizer: Tokenizer) -> TokenLogprob:
    values, ids = logprobs_V.topk(min(top, len(logprobs_V)))
    likeliest = tuple(
        (number, tokenizer.token_text(number), value)
        for number, value in zip(ids.tolist(), values.tolist(), strict=True)
    )
    return TokenLogprob(token, tokenizer.token_text(token), float(logprobs_V[token]), likeliest)

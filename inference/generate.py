"""Generation with the transformers forward pass and its dynamic key-value cache.

For models that the batched engine (batched_model.py) does not support: sharded models (ZeRO-3), whose ranks run every
forward pass together; models during training; architectures with other forms of attention. Both use the same sampler
and the same stop conditions.

Prompts share a batch (cached_step.py). Sequences that ended leave it. A result does not depend on the other prompts of
the batch.

B sequences, V vocabulary, S source tokens and U target tokens of an encoder-decoder model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import InputError
from tunesmith.inference.cached_step import CachedStep
from tunesmith.inference.sampling import Sampler, seeded, seeded_by_prompt
from tunesmith.inference.stop import StopScanner, find_stop
from tunesmith.inference.text_stream import TextStream, Vocabulary
from tunesmith.inference.types import MAX_CONTEXT, Answer, Sampling
from tunesmith.modeling.loading.attention_choice import attention_of
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_to

_MAX_BYTES_PER_CHARACTER = 4
"""In UTF-8. A token has at least one byte, so this bounds the tokens that a stop string spans."""


def generate(
    model: nn.Module,
    tokenizer: Vocabulary,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    on_text: Callable[[str], None] | None = None,
    compute_dtype: torch.dtype | None = None,
    agree: Callable[[int], int] | None = None,
) -> Answer:
    """Generate the continuation of a prompt. Restores the model's mode and attention; torch's global generator is not
    used. The sampling's seed is used as is.

    on_text: called with each piece of text as it becomes final; the pieces add up to Answer.text. compute_dtype: as in
    CausalLoss. agree: for a sharded model, broadcasts the token of one rank to all ranks. Raises InputError if the
    prompt is empty or fills the model's context.
    """
    limit = _limit(prompt, sampling, causal_lm(model).config)
    sequence = _Sequence(prompt, limit, sampling, tokenizer, seeded(sampling.seed), on_text)
    _decode(model, [sequence], compute_dtype, agree)
    return sequence.answer()


def generate_batch(
    model: nn.Module,
    tokenizer: Vocabulary,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    compute_dtype: torch.dtype | None = None,
) -> list[Answer]:
    """Generate the continuations of many prompts, in their order; otherwise as `generate`. The random generator of each
    prompt is seeded by its tokens, so that samples depend neither on the batch nor on the order."""
    config = causal_lm(model).config
    sequences = [
        _Sequence(
            prompt, _limit(prompt, sampling, config), sampling, tokenizer, seeded_by_prompt(prompt, sampling.seed)
        )
        for prompt in prompts
    ]
    _decode(model, sequences, compute_dtype)
    return [sequence.answer() for sequence in sequences]


@torch.no_grad()
def generate_target(
    model: nn.Module,
    tokenizer: Vocabulary,
    source: Sequence[int],
    sampling: Sampling,
    *,
    agree: Callable[[int], int] | None = None,
) -> Answer:
    """Generate the target of an encoder-decoder model. Restores the model's mode. The decoder runs over the whole
    target for each token, without a cache, as in training. agree: as in `generate`."""
    inner: Any = causal_lm(model)
    device = next(inner.parameters()).device
    _require_known(source, inner.config)
    limit = MAX_CONTEXT if sampling.max_new_tokens is None else sampling.max_new_tokens
    sequence = _Sequence(source, limit, sampling, tokenizer, seeded(sampling.seed))
    with evaluating(model):
        source_1S = torch.tensor([list(source)], device=device)
        encoded = inner.get_encoder()(input_ids=source_1S, attention_mask=torch.ones_like(source_1S))
        while not sequence.ended:
            written_1U = torch.tensor([[inner.config.decoder_start_token_id, *sequence.tokens]], device=device)
            logits_1UV = inner(encoder_outputs=encoded, decoder_input_ids=written_1U, use_cache=False).logits
            sequence.take(logits_1UV[0, -1].float().cpu(), agree)
    return sequence.answer()


class _Sequence:
    """One sequence being generated. limit: maximum number of new tokens."""

    def __init__(
        self,
        prompt: Sequence[int],
        limit: int,
        sampling: Sampling,
        tokenizer: Vocabulary,
        generator: torch.Generator,
        on_text: Callable[[str], None] | None = None,
    ):
        self.prompt, self.limit, self.tokenizer = prompt, limit, tokenizer
        self.sampler = Sampler(sampling, generator, tokenizer)
        self.scanner = StopScanner(sampling.stop)
        self.on_text = on_text
        self.stream = TextStream(
            tokenizer, None if on_text is None else lambda text: self._show(self.scanner.add(text))
        )
        self.stopped = False

    @property
    def tokens(self) -> list[int]:
        return self.stream.tokens

    @property
    def all_tokens(self) -> list[int]:
        return [*self.prompt, *self.tokens]

    @property
    def ended(self) -> bool:
        return self.stopped or len(self.tokens) >= self.limit

    def take(self, logits_V: Tensor, agree: Callable[[int], int] | None = None) -> None:
        """Append the next token, or end the sequence."""
        token = self.sampler.pick(logits_V)
        token = agree(token) if agree is not None else token
        if token in self.tokenizer.stop_token_ids:
            self.stopped = True
            return
        complete = self.sampler.accept(token)
        self.stream.add(token)
        self.stopped = complete or self._reached_stop()

    def answer(self) -> Answer:
        text = self.stream.finish()
        self._show(self.scanner.finish())
        return Answer(text[: find_stop(text, self.scanner.stops)], self.tokens, self.stopped)

    def _reached_stop(self) -> bool:
        """Check the end of the text first, and the whole text only if the end contains a stop string."""
        if not self.scanner.stops:
            return False
        reach = _MAX_BYTES_PER_CHARACTER * max(map(len, self.scanner.stops)) + 1
        return all(
            find_stop(self.tokenizer.decode(tokens), self.scanner.stops) is not None
            for tokens in (self.tokens[-reach:], self.tokens)
        )

    def _on_text(self, text: str) -> None:
        self._show(self.scanner.add(text))

    def _show(self, text: str) -> None:
        if text and self.on_text is not None:
            self.on_text(text)


def _decode(
    model: nn.Module,
    sequences: Sequence[_Sequence],
    compute_dtype: torch.dtype | None,
    agree: Callable[[int], int] | None = None,
) -> None:
    """Generate tokens until all sequences have ended."""
    inner = causal_lm(model)
    device = next(inner.parameters()).device
    active = [sequence for sequence in sequences if not sequence.ended]
    if not active:
        return
    step = CachedStep([sequence.all_tokens for sequence in active], inner, device)
    with torch.no_grad(), _generating(model), autocast_to(compute_dtype, device):
        while active:
            logits_BV = step.logits()
            for row, sequence in enumerate(active):
                sequence.take(logits_BV[row], agree)
            remaining = [row for row, sequence in enumerate(active) if not sequence.ended]
            if not remaining:
                return
            if len(remaining) < len(active):
                active = [active[row] for row in remaining]
                step.keep(remaining)
            step = step.following([sequence.all_tokens for sequence in active])


@contextmanager
def _generating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and an attention that supports a cache, within the block."""
    inner = causal_lm(model)
    with evaluating(model), attention_of(inner, None):
        yield


def _limit(prompt: Sequence[int], sampling: Sampling, config: object) -> int:
    """Maximum number of new tokens: as requested, limited by the context."""
    context = getattr(config, "max_position_embeddings", None) or MAX_CONTEXT
    if not len(prompt):
        raise InputError("the prompt is empty", remedy="enter some text")
    if len(prompt) >= context:
        raise InputError(
            f"the prompt has {len(prompt):,} tokens; the model's context is {context:,}", remedy="shorten the prompt"
        )
    _require_known(prompt, config)
    available = context - len(prompt)
    return available if sampling.max_new_tokens is None else min(sampling.max_new_tokens, available)


def _require_known(prompt: Sequence[int], config: object) -> None:
    """Raise InputError if the tokenizer gave a token for which the model has no embedding."""
    size = getattr(config, "vocab_size", None)
    if size is not None and len(prompt) and (token := max(prompt)) >= size:
        raise InputError(
            f"token {token} of the prompt is beyond the embedding of the model, which has {size:,} rows",
            remedy="the tokenizer has more tokens than the model: enlarge the model with "
            "model.resize_token_embeddings(...), or use the tokenizer that it was trained with",
        )

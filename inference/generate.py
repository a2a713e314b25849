"""Answers of a model in memory, by its own forward pass in transformers and transformers' dynamic key-value cache.

For models that the batched engine (batched_model.py) does not take: sharded ones (ZeRO-3), whose ranks run every
forward pass together; models as they are in the midst of a training; architectures whose attention it does not know.
Both draw with the same sampler and stop at the same places.

Many prompts share a batch: they are padded on the left, so that all end at the same place; padding is masked and
positions count from each prompt's own first token. Sequences that ended leave the batch. Each answer is what its prompt
would get alone.

B sequences, T the longest prompt, V vocabulary, S source tokens and U target tokens of an encoder-decoder.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tunesmith.errors import InputError
from tunesmith.inference.sampling import Sampler, seeded, seeded_by_prompt
from tunesmith.inference.stop import StopScanner, find_stop
from tunesmith.inference.text_stream import TextStream, Vocabulary
from tunesmith.inference.types import MAX_CONTEXT, Answer, Sampling
from tunesmith.modeling.loading.packed_attention_hook import attention_of
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_to

_BYTES_OF_A_TOKEN = 4
"""A character of UTF-8 has at most four bytes, and a token holds at least one: how far back a stop string reaches."""


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
    """The model's continuation of the prompt. The model is left as it was: its mode, its attention, torch's global
    generator. Tokens are drawn by the sampling's seed as it is.

    on_text: called with each piece of text as it becomes final; together they are Answer.text. compute_dtype: as in
    CausalLoss. agree: where several ranks run a sharded model together, gives all of them one rank's token.
    InputError where the prompt is empty or fills the model's context.
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
    """The model's continuations, in the order of the prompts; otherwise as `generate`. Each prompt draws from a
    generator of its own, seeded by its tokens: neither the batch nor the order decides what is drawn."""
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
def generate_target(model: nn.Module, tokenizer: Vocabulary, source: Sequence[int], sampling: Sampling) -> Answer:
    """What an encoder-decoder model writes for a source. The model is left as it was. The decoder runs over the whole
    target for each token, without a cache, as in training."""
    inner: Any = causal_lm(model)
    device = next(inner.parameters()).device
    limit = MAX_CONTEXT if sampling.max_new_tokens is None else sampling.max_new_tokens
    sequence = _Sequence(source, limit, sampling, tokenizer, seeded(sampling.seed))
    with evaluating(model):
        source_1S = torch.tensor([list(source)], device=device)
        encoded = inner.get_encoder()(input_ids=source_1S, attention_mask=torch.ones_like(source_1S))
        while not sequence.ended:
            written_1U = torch.tensor([[inner.config.decoder_start_token_id, *sequence.tokens]], device=device)
            logits_1UV = inner(encoder_outputs=encoded, decoder_input_ids=written_1U, use_cache=False).logits
            sequence.take(logits_1UV[0, -1].float().cpu())
    return sequence.answer()


class _Sequence:
    """One answer in the making. limit: tokens at most."""

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
    def ended(self) -> bool:
        return self.stopped or len(self.tokens) >= self.limit

    def take(self, logits_V: Tensor, agree: Callable[[int], int] | None = None) -> None:
        """Add the next token, or end."""
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
        """Looks at the end of the text, and at the whole where a stop string seems to be there."""
        if not self.scanner.stops:
            return False
        reach = _BYTES_OF_A_TOKEN * max(map(len, self.scanner.stops)) + 1
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
    """Add tokens to all sequences until each has ended."""
    inner = causal_lm(model)
    device = next(inner.parameters()).device
    active = [sequence for sequence in sequences if not sequence.ended]
    if not active:
        return
    tokens_BT, mask_BT = _left_padded([sequence.prompt for sequence in active], device)
    position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    # Without padding, mask and positions are those that the model takes by itself.
    padded = len({len(sequence.prompt) for sequence in active}) > 1
    cache = DynamicCache(config=inner.config)
    with torch.no_grad(), _answering(model), autocast_to(compute_dtype, device):
        while active:
            places = {"attention_mask": mask_BT, "position_ids": position_BT} if padded else {}
            output = inner(input_ids=tokens_BT, **places, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits_BV = output.logits[:, -1].float().cpu()
            for row, sequence in enumerate(active):
                sequence.take(logits_BV[row], agree)
            going = [row for row, sequence in enumerate(active) if not sequence.ended]
            if len(going) < len(active):
                kept = torch.tensor(going, dtype=torch.int64, device=device)
                active = [active[row] for row in going]
                mask_BT, position_BT = mask_BT[kept], position_BT[kept]
                if active:
                    cache.batch_select_indices(kept)
            tokens_BT = torch.tensor([[sequence.tokens[-1]] for sequence in active], device=device)
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(active), 1)], dim=1)
            position_BT = position_BT[:, -1:] + 1


@contextmanager
def _answering(model: nn.Module) -> Iterator[None]:
    """Eval mode, and an attention that knows a cache, for the time of the block."""
    with evaluating(model), attention_of(causal_lm(model), "sdpa"):
        yield


def _limit(prompt: Sequence[int], sampling: Sampling, config: object) -> int:
    """New tokens at most: those that were asked for, as far as the context leaves room."""
    context = getattr(config, "max_position_embeddings", None) or MAX_CONTEXT
    if not len(prompt):
        raise InputError("the prompt is empty", remedy="write something for the model to answer")
    if len(prompt) >= context:
        raise InputError(
            f"the prompt has {len(prompt)} tokens and the model's context only {context}", remedy="shorten it"
        )
    room = context - len(prompt)
    return room if sampling.max_new_tokens is None else min(sampling.max_new_tokens, room)


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and mask (1: a token), int64 [B, T]. What stands in the padding is never seen."""
    longest = max(map(len, prompts))
    tokens_BT = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask_BT = torch.zeros_like(tokens_BT)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    return tokens_BT.to(device), mask_BT.to(device)

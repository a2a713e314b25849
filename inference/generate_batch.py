"""Many prompts answered at once, with one key-value cache; each answer is what its prompt would get alone.

B sequences, T the longest prompt, V vocabulary. Prompts are padded on the left, so that all end at the same place;
padding is masked and positions count from each prompt's own first token. Each sequence draws from a generator of its
own, seeded by its prompt: neither the batch nor the order decides what is drawn. Sequences that ended leave the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tunesmith.errors import InputError
from tunesmith.inference.generate import Answer, answering, pick_token
from tunesmith.inference.text_stream import Vocabulary
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_to

_BYTES_OF_A_TOKEN = 4
"""A character of UTF-8 has at most four bytes, and a token holds at least one: how far back a stop string reaches."""


@dataclass(frozen=True)
class Sampling:
    """How answers are made. temperature: 0 takes the likeliest token; above 0 samples, from the smallest set of tokens
    whose probabilities reach top_p. stop: texts that end an answer and are not part of it. seed: of the whole."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class _Sequence:
    """One answer in the making."""

    def __init__(self, place: int, prompt: Sequence[int], limit: int, sampling: Sampling, tokenizer: Vocabulary):
        self.place, self.prompt_length, self.limit = place, len(prompt), limit
        self.sampling, self.tokenizer = sampling, tokenizer
        self.generator = torch.Generator().manual_seed(seed_of(prompt, sampling.seed))
        self.tokens: list[int] = []
        self.stopped = False

    def take(self, logits_V: Tensor) -> bool:
        """Add the next token; whether the answer goes on."""
        token = pick_token(logits_V, self.sampling.temperature, self.sampling.top_p, self.generator)
        if token in self.tokenizer.stop_token_ids:
            self.stopped = True
            return False
        self.tokens.append(token)
        self.stopped = self._reached_stop()
        return not self.stopped and len(self.tokens) < self.limit

    def answer(self) -> Answer:
        text = self.tokenizer.decode(self.tokens)
        places = [found for stop in self.sampling.stop if (found := text.find(stop)) >= 0]
        return Answer(text[: min(places)] if places else text, self.tokens, self.stopped)

    def _reached_stop(self) -> bool:
        if not self.sampling.stop:
            return False
        reach = _BYTES_OF_A_TOKEN * max(map(len, self.sampling.stop)) + 1
        tail = self.tokenizer.decode(self.tokens[-reach:])
        return any(stop in tail for stop in self.sampling.stop) and any(
            stop in self.tokenizer.decode(self.tokens) for stop in self.sampling.stop
        )


def generate_batch(
    model: nn.Module,
    tokenizer: Vocabulary,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    compute_dtype: torch.dtype | None = None,
) -> list[Answer]:
    """The model's continuations, in the order of the prompts. The model is left as it was, see `generate`.

    Answer.tokens holds the tokens of a stop string, Answer.text does not. InputError where a prompt is empty or fills
    the model's context.
    """
    inner = causal_lm(model)
    limits = [_limit(prompt, sampling.max_new_tokens, inner.config) for prompt in prompts]
    device = next(inner.parameters()).device
    everyone = [
        _Sequence(place, prompt, limit, sampling, tokenizer)
        for place, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    active = list(everyone)
    tokens_BT, mask_BT = _left_padded(prompts, device)
    position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=inner.config)
    with torch.no_grad(), answering(model), autocast_to(compute_dtype, device):
        while active:
            output = inner(
                input_ids=tokens_BT,
                attention_mask=mask_BT,
                position_ids=position_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits_BV = output.logits[:, -1].float().cpu()
            going = [row for row, sequence in enumerate(active) if sequence.take(logits_BV[row])]
            if len(going) < len(active):
                kept = torch.tensor(going, dtype=torch.int64, device=device)
                active = [active[row] for row in going]
                mask_BT, position_BT = mask_BT[kept], position_BT[kept]
                if active:
                    cache.batch_select_indices(kept)
            tokens_BT = torch.tensor([[sequence.tokens[-1]] for sequence in active], device=device)
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(active), 1)], dim=1)
            position_BT = position_BT[:, -1:] + 1
    return [sequence.answer() for sequence in everyone]


def seed_of(prompt: Sequence[int], seed: int) -> int:
    """The seed of one prompt's generator: by its tokens, not by its place."""
    content = np.array([seed, *prompt], "<i8").tobytes()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little") >> 1


def _limit(prompt: Sequence[int], max_new_tokens: int, config: object) -> int:
    """New tokens that the context leaves room for."""
    context = getattr(config, "max_position_embeddings", None) or len(prompt) + max_new_tokens
    if not len(prompt):
        raise InputError("the prompt is empty", remedy="write something for the model to answer")
    if len(prompt) >= context:
        raise InputError(
            f"the prompt has {len(prompt)} tokens and the model's context only {context}", remedy="shorten it"
        )
    return min(max_new_tokens, context - len(prompt))


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and mask (1: a token), int64 [B, T]. What stands in the padding is never seen."""
    longest = max(map(len, prompts))
    tokens_BT = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask_BT = torch.zeros_like(tokens_BT)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    return tokens_BT.to(device), mask_BT.to(device)

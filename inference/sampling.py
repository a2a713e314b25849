"""Sampling of the next token from logits. V vocabulary."""

import os
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.inference.grammar_matcher import GrammarMatcher
from tunesmith.inference.types import Sampling

MIN_TEMPERATURE = 1e-5
"""Below it, the most likely token is practically certain, and dividing by it overflows fp32."""


class Sampler:
    """Samples the tokens of one sequence from its logits (fp32, CPU). generator: used by this sequence only. tokenizer:
    a `Tokenizer` of data/ if the sampling has a grammar. Raises RequestRejected if the grammar is not supported."""

    def __init__(self, sampling: Sampling, generator: torch.Generator, tokenizer: Any):
        self.sampling, self.generator = sampling, generator
        self.counts: Counter[int] = Counter()
        self.matcher = None if sampling.grammar is None else GrammarMatcher(tokenizer, sampling.grammar)

    def pick(self, logits_V: Tensor) -> int:
        return pick_token(self._shaped(logits_V), self.sampling.temperature, self.sampling.top_p, self.generator)

    def accept(self, token: int) -> bool:
        """Record a generated token. Returns whether the grammar is complete."""
        complete = self.matcher is not None and self.matcher.take(token)
        self.counts[token] += 1
        return complete

    def _shaped(self, logits_V: Tensor) -> Tensor:
        """Apply the penalties of the OpenAI API over the generated tokens, then the biases, then the grammar."""
        sampling = self.sampling
        if (sampling.presence_penalty or sampling.frequency_penalty) and self.counts:
            seen_N = torch.tensor(list(self.counts))
            count_N = torch.tensor(list(self.counts.values()), dtype=torch.float32)
            logits_V = logits_V.clone()
            logits_V[seen_N] -= sampling.presence_penalty + sampling.frequency_penalty * count_N
        if sampling.logit_bias:
            logits_V = logits_V.clone()
            for token, bias in sampling.logit_bias.items():
                if 0 <= token < len(logits_V):
                    logits_V[token] += bias
        return logits_V if self.matcher is None else self.matcher.allowed(logits_V)


def pick_token(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature < MIN_TEMPERATURE:
        return int(logits_V.argmax())
    probabilities_V, order_V = (logits_V / temperature).softmax(-1).sort(descending=True, stable=True)
    # A token stays if the preceding ones have not reached top_p; the first always stays.
    before_V = probabilities_V.cumsum(-1) - probabilities_V
    probabilities_V[(before_V >= top_p) & (torch.arange(len(before_V)) > 0)] = 0.0
    return int(order_V[torch.multinomial(probabilities_V, 1, generator=generator)])


def seeded(seed: int | None) -> torch.Generator:
    return torch.Generator().manual_seed(_seed_or_random(seed))


def seeded_by_prompt(prompt: Sequence[int], seed: int | None) -> torch.Generator:
    """A generator seeded by a prompt's tokens, so that samples do not depend on its position or the batch."""
    content = np.array([_seed_or_random(seed), *prompt], "<i8").tobytes()
    digest = int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(digest >> 1)


def _seed_or_random(seed: int | None) -> int:
    return int.from_bytes(os.urandom(7), "little") if seed is None else seed

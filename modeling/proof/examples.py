"""Documents on which the paths of a model are compared: random tokens, longer than the model's attention window."""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from tunesmith.kernels.linear_cross_entropy import IGNORED

LENGTHS = (24, 5, 11, 20)
"""Tokens of the documents. The longest comes first, so that a leak reaches every other one; two of them share a padded
batch."""
LONGEST_WINDOW = 128
"""Longer attention windows are not exceeded here: the cut model (cut.py) has shorter ones."""
WINDOWS = ("sliding_window", "attention_window_size", "attention_chunk_size", "window_size", "local_window_size")
"""Names of the attention window or chunk, in tokens, in configurations."""


@dataclass(frozen=True)
class Examples:
    """Documents as a training batch has them; T tokens in total."""

    tokens_T: Tensor
    """int64"""
    labels_T: Tensor
    """int64: the next token of the same document, -100 at its end and for the first token of longer ones."""
    lengths: list[int]
    """Tokens of each document."""

    @property
    def positions_T(self) -> Tensor:
        """int64: position of each token in its document."""
        return torch.cat([torch.arange(length, device=self.tokens_T.device) for length in self.lengths])

    def documents(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens and labels of each document, int64 [t] each."""
        return zip(self.tokens_T.split(self.lengths), self.labels_T.split(self.lengths), strict=True)


def examples(
    config: PretrainedConfig, *, lengths: Sequence[int] = LENGTHS, device: str | torch.device = "cpu", seed: int = 0
) -> Examples:
    """Return documents of random tokens for a model of this configuration: at least one is longer than its attention
    window, none is longer than its position table. The same arguments give the same tokens."""
    text: Any = config.get_text_config(decoder=True)
    window = longest_window(text)
    limit = _position_limit(text)
    known = [length + window if i == 0 and window else length for i, length in enumerate(lengths)]
    sizes = [min(length, limit) for length in known]
    special = set(_special_tokens(config)) | set(_special_tokens(text))
    draw = random.Random(seed)  # not torch's generator: the same tokens on every device and in every version
    vocabulary = int(text.vocab_size)
    usable = max(1, vocabulary - sum(0 <= token < vocabulary for token in special))
    tokens: list[int] = []
    while len(tokens) < sum(sizes):
        token = draw.randrange(vocabulary)
        if token not in special or usable == 1:  # placeholders of images and padding change what a model computes
            tokens.append(token)
    tokens_T = torch.tensor(tokens)
    return Examples(tokens_T.to(device), _labels(tokens_T, sizes).to(device), sizes)


def longest_window(config: PretrainedConfig) -> int | None:
    """Return the longest attention window of a configuration, in tokens; None without one up to LONGEST_WINDOW."""
    windows = [getattr(config, name, None) for name in WINDOWS]
    return max((w for w in windows if isinstance(w, int) and 0 < w <= LONGEST_WINDOW), default=None)


def _position_limit(config: Any) -> int:
    """Tokens of the position table; without one, more than any document here."""
    for name in ("max_position_embeddings", "n_positions"):
        with suppress(AttributeError, NotImplementedError):  # XLNet raises the latter
            if isinstance(limit := getattr(config, name), int) and limit > 1:
                return limit
    return sys.maxsize


def _labels(tokens_T: Tensor, lengths: Sequence[int]) -> Tensor:
    labels_T = tokens_T.roll(-1)
    end = 0
    for length in lengths:
        if length > 4:
            labels_T[end] = IGNORED
        end += length
        labels_T[end - 1] = IGNORED
    return labels_T


def _special_tokens(config: PretrainedConfig) -> Iterator[int]:
    """Ids under every key of the configuration that names a token."""
    for name, value in vars(config).items():
        if name.endswith(("token_id", "token_ids", "token_index")):
            yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))

"""One step of generation with transformers' dynamic key-value cache, for a batch of sequences of different lengths.

Sequences share the batch with left padding. Padding is masked, and positions count from the first token of each.

B sequences, T tokens of the step, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.inference.model_cache import accepted, new_cache
from tunesmith.modeling.loading.document_rope import document_rotary


class CachedStep:
    """Inputs of a forward pass: all tokens of each sequence. Those of the steps that follow are one token each.

    sequences: all tokens of each sequence.
    """

    def __init__(self, sequences: Sequence[list[int]], model: Any, device: torch.device):
        self._model, self._device = model, device
        self._tokens_BT, self._mask_BT = _left_padded(sequences, device)
        self._position_BT = (self._mask_BT.cumsum(-1) - 1).clamp(min=0)
        # Without padding, the model's default mask is right.
        self._padded = len(set(map(len, sequences))) > 1
        self._cache = new_cache(model)
        self._rotary = document_rotary(model)
        self._rope_tables = self._tables(sequences)

    def logits(self) -> Tensor:
        """Return the logits after the last token of each sequence, fp32 [B, V] on the CPU."""
        mask = {"attention_mask": self._mask_BT} if self._padded else {}
        inputs = accepted(self._model, position_ids=self._position_BT, logits_to_keep=1)
        output = self._model(input_ids=self._tokens_BT, **mask, **inputs, **self._cache, use_cache=bool(self._cache))
        return output.logits[:, -1].float().cpu()

    def keep(self, rows: list[int]) -> None:
        """Remove the sequences that are not in these rows."""
        kept = torch.tensor(rows, dtype=torch.int64, device=self._device)
        self._mask_BT, self._position_BT = self._mask_BT[kept], self._position_BT[kept]
        self._rope_tables = [tables for row, tables in enumerate(self._rope_tables) if row in rows]
        for cache in self._cache.values():
            cache.batch_select_indices(kept)

    def following(self, sequences: Sequence[list[int]]) -> "CachedStep":
        """Return the step for sequences that are one token longer.

        Everything is computed again without a cache, and if a sequence grew past a limit of a length-dependent rotary
        embedding: its cached keys were rotated with the frequencies of shorter sequences.
        """
        if not self._cache or self._tables(sequences) != self._rope_tables:
            return CachedStep(sequences, self._model, self._device)
        self._tokens_BT = torch.tensor([[tokens[-1]] for tokens in sequences], device=self._device)
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(sequences), 1)], dim=1)
        self._position_BT = self._position_BT[:, -1:] + 1
        return self

    def _tables(self, sequences: Sequence[list[int]]) -> list[tuple[int, ...]]:
        return [] if self._rotary is None else [self._rotary.tables_of(len(tokens)) for tokens in sequences]


def _left_padded(sequences: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Left-padded tokens and mask (1: token, 0: padding), int64 [B, T]."""
    longest = max(map(len, sequences))
    tokens_BT = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask_BT = torch.zeros_like(tokens_BT)
    for row, tokens in enumerate(sequences):
        tokens_BT[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask_BT[row, longest - len(tokens) :] = 1
    return tokens_BT.to(device), mask_BT.to(device)

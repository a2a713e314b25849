"""Runs each sequence of a step alone, with transformers' own cache: for models that cannot be run in batches.

State-space and hybrid models, and classes with attention of their own. The cache is used if, on a probe, its logits
equal those of a forward pass without it; otherwise all tokens of a sequence are computed for each new one.

T tokens of a forward pass, the last K of them with logits, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tunesmith.inference.base_runner import BaseRunner
from tunesmith.inference.kv_cache import Slot
from tunesmith.inference.model_cache import accepted, new_cache, positions
from tunesmith.inference.sequence import Sequence
from tunesmith.modeling.proof.limits import limits_of, relative_difference

_PROMPT_TOKENS, _PROBE_TOKENS = 8, 12
"""Tokens of the probe, the first of them as a prompt. Longer than the kernels of short convolutions."""


class SequentialRunner(BaseRunner):
    """Runs the sequences of a step one after the other. on_layer: called after each forward pass."""

    def __init__(self, directory: Path, device: torch.device, on_layer: Callable[[], None] = lambda: None):
        super().__init__(directory, device, on_layer)
        self._caches: WeakKeyDictionary[Slot, dict[str, Any]] = WeakKeyDictionary()
        self.has_cache = self._cache_agrees()

    def cache_bytes_per_token(self) -> int:
        """An estimate: keys and values of the embedding's width in each layer."""
        width = self.model.get_input_embeddings().embedding_dim
        return 2 * self.num_layers * width * torch.finfo(self.dtype).bits // 8

    def run(self, parts: list[tuple[Sequence, int]]) -> list[tuple[Sequence, int, Tensor]]:
        """Process the next tokens of each sequence. Arguments and result as of `ModelRunner.run`."""
        results: list[tuple[Sequence, int, Tensor]] = []
        for sequence, count in parts:
            slot, name = sequence.slot, sequence.adapter
            assert slot is not None
            first, end = slot.length, slot.length + count
            needed = [position for position in range(first, end) if sequence.needs_logits(position)]
            self.adapters.rows.body = self.adapters.rows.head = [(0, end, name)] if name else []
            logits_KV = self._logits(slot, sequence.tokens[:end], end - min(needed, default=end - 1))
            results += [(sequence, position, logits_KV[position - end]) for position in needed]
            slot.length = end
        return results

    def _logits(self, slot: Slot, tokens: list[int], keep: int) -> Tensor:
        """Logits after the last `keep` of a sequence's tokens."""
        if not self.has_cache:
            return self._forward(tokens, 0, keep, {})
        if slot.length == 0 or slot not in self._caches:
            self._caches[slot] = new_cache(self.model)
            return self._forward(tokens, 0, keep, self._caches[slot])
        # One at a time: some state-space layers continue a state by single tokens only.
        cache = self._caches[slot]
        steps = [self._forward([tokens[p]], p, 1, cache) for p in range(slot.length, len(tokens))]
        return torch.cat(steps)[-keep:]

    def _forward(self, tokens: list[int], first: int, keep: int, cache: dict[str, Any]) -> Tensor:
        """Logits after the last `keep` tokens, fp32 [K, V] on the CPU. first: position of the first token."""
        # logits_to_keep: the logits of a whole prompt take T x V values.
        options = accepted(self.model, position_ids=positions(first, len(tokens), self.device), logits_to_keep=keep)
        tokens_1T = torch.tensor([tokens], device=self.device)
        output = self.model(input_ids=tokens_1T, **options, **cache, use_cache=bool(cache))
        self.on_layer()
        return output.logits[0, -keep:].float().cpu()

    @torch.inference_mode()
    def _cache_agrees(self) -> bool:
        """Whether a prompt and single tokens after it give the logits of one forward pass without a cache. In between,
        another sequence starts: some classes keep the state of a sequence in their layers (RecurrentGemma)."""
        cache = new_cache(self.model)
        if not cache:
            return False
        tokens = [(7 * position + 3) % self.vocabulary("") for position in range(_PROBE_TOKENS)]
        expected_TV = self._forward(tokens, 0, _PROBE_TOKENS, {})
        try:
            steps = [self._forward(tokens[:_PROMPT_TOKENS], 0, _PROMPT_TOKENS, cache)]
            self._forward(tokens[::-1], 0, 1, new_cache(self.model))
            steps += [self._forward([tokens[p]], p, 1, cache) for p in range(_PROMPT_TOKENS, _PROBE_TOKENS)]
        except Exception:  # a class without this cache fails in its own way: it is run without one
            return False
        return relative_difference(torch.cat(steps), expected_TV) <= limits_of(None, self.model).gradient

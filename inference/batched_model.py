"""A model in memory and the batch that runs over it: sequences join and leave at any step.

V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.inference import rendering
from tunesmith.inference.kv_cache import KVCache
from tunesmith.inference.model_runner import ModelRunner
from tunesmith.inference.scheduler import Scheduler
from tunesmith.inference.sequence import Output, Sequence
from tunesmith.inference.types import RequestRejected, Target

STEP_ROWS = {"cpu": 256, "cuda": 2048}
"""Rows of a step at most, unless more sequences generate."""
CACHE_SHARE = 0.25
"""Of the memory that is free once the model is loaded: for keys and values."""


class BatchedModel:
    """cache_tokens: that keys and values may be kept for; None what CACHE_SHARE gives. free_memory: bytes that are free
    on the host. Raises RequestRejected where the directory holds no model that can be run in batches, InputError where
    it cannot be loaded."""

    def __init__(self, directory: Path, device: torch.device, cache_tokens: int | None, free_memory: Callable[[], int]):
        self.directory, self.device = directory, device
        self.runner = ModelRunner(directory, device)
        self.cache = KVCache(self.runner.context)
        if not cache_tokens:
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
            cache_tokens = max(1, int(CACHE_SHARE * free) // self.runner.cache_bytes_per_token())
        self.scheduler = Scheduler(self.cache, cache_tokens, STEP_ROWS[device.type])
        self.adapters = self.runner.adapters

    @property
    def active(self) -> list[Sequence]:
        return self.scheduler.active

    def tokenizer(self, adapter: str) -> Tokenizer:
        """The adapter's own where it was exported with one, else the base's."""
        target = Target(self.directory, Path(adapter) if adapter else None)
        return rendering.tokenizer_of(rendering.tokenizer_dir(target))

    @torch.inference_mode()
    def join(self, sequence: Sequence) -> None:
        """Its adapter is in memory."""
        self.scheduler.join(sequence)

    @torch.inference_mode()
    def leave(self, sequence: Sequence) -> None:
        self.scheduler.leave(sequence)

    @torch.inference_mode()
    def step(self) -> tuple[list[tuple[Sequence, list[Output]]], list[Sequence]]:
        """What came of the sequences that have something to report, of which those that ended have left; and those that
        had to give their slots back and wait again. Raises RequestRejected where the architecture cannot be run."""
        parts, preempted = self.scheduler.schedule()
        outputs: dict[Sequence, list[Output]] = {}
        for sequence, position, logits_V in self.runner.run(parts):
            if not sequence.ended:
                outputs.setdefault(sequence, []).extend(_outputs(sequence, position, logits_V))
        for sequence in outputs:
            if sequence.ended:
                self.scheduler.leave(sequence)
        return [(sequence, found) for sequence, found in outputs.items() if found], preempted


def _outputs(sequence: Sequence, position: int, logits_V: Tensor) -> list[Output]:
    """Where the logits are not numbers, the sequence ends; other sequences go on."""
    if logits_V.isnan().any():
        sequence.ended = True
        return [RequestRejected("invalid_logits", "the model's logits are not numbers (NaN)")]
    return sequence.take(position, logits_V)

"""A model in memory and its running batch: sequences join and leave at any step.

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
from tunesmith.inference.sequential_runner import SequentialRunner
from tunesmith.inference.types import RequestRejected, Target

STEP_ROWS = {"cpu": 256, "cuda": 2048}
"""Maximum rows of a step, unless more sequences are generating."""
CACHE_SHARE = 0.25
"""Fraction of the memory free after loading the model that is used for keys and values."""


class BatchedModel:
    """cache_tokens: capacity of the KV cache; None: given by CACHE_SHARE. free_memory: returns the free bytes of the
    host. on_layer: called by each layer of a step. Raises RequestRejected if the model is an encoder, InputError if it
    cannot be loaded."""

    def __init__(
        self,
        directory: Path,
        device: torch.device,
        cache_tokens: int | None,
        free_memory: Callable[[], int],
        on_layer: Callable[[], None] = lambda: None,
    ):
        self.directory, self.device = directory, device
        self.runner = open_runner(directory, device, on_layer)
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
        """The tokenizer exported with the adapter, or else the base model's."""
        target = Target(self.directory, Path(adapter) if adapter else None)
        return rendering.tokenizer_of(rendering.tokenizer_dir(target))

    @torch.inference_mode()
    def join(self, sequence: Sequence) -> None:
        """Add a sequence to the batch. Its adapter must be loaded."""
        self.scheduler.join(sequence)

    @torch.inference_mode()
    def leave(self, sequence: Sequence) -> None:
        self.scheduler.leave(sequence)

    @torch.inference_mode()
    def step(self) -> tuple[list[tuple[Sequence, list[Output]]], list[Sequence]]:
        """Run one step. Returns (sequence, outputs) for sequences with new output, and the preempted sequences.
        Sequences that ended have left the batch. Raises RequestRejected if the architecture is not supported."""
        self.runner.drop_stale_keys(self.active)
        parts, preempted = self.scheduler.schedule()
        outputs: dict[Sequence, list[Output]] = {}
        for sequence, position, logits_V in self.runner.run(parts):
            if not sequence.ended:
                outputs.setdefault(sequence, []).extend(_outputs(sequence, position, logits_V))
        for sequence in outputs:
            if sequence.ended:
                self.scheduler.leave(sequence)
        return [(sequence, produced) for sequence, produced in outputs.items() if produced], preempted


def open_runner(directory: Path, device: torch.device, on_layer: Callable[[], None]) -> ModelRunner | SequentialRunner:
    """Return the runner of a model: in batches if its class supports them, otherwise sequence by sequence. Raises
    RequestRejected for an encoder."""
    try:
        runner = ModelRunner(directory, device, on_layer)
        runner.require_batches()
    except RequestRejected as rejected:
        if rejected.code not in ("unsupported_model", "unsupported_attention", "unsupported_layers"):
            raise
    else:
        return runner
    return SequentialRunner(directory, device, on_layer)


def _outputs(sequence: Sequence, position: int, logits_V: Tensor) -> list[Output]:
    """Outputs of one sequence. NaN logits end this sequence; the others continue."""
    if logits_V.isnan().any():
        sequence.ended = True
        return [RequestRejected("invalid_logits", "the model's logits are NaN")]
    return sequence.take(position, logits_V)

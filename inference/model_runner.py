"""One base in memory, and the batch that runs over it: sequences join and leave at any step.

A step gives every sequence that is generating its next token, and fills what is left of the step with rows of prompts
that are still to be read; so a long prompt delays nobody by more than one step. All rows lie end to end, sorted by
adapter. A sequence for which the cache has no room left gives its place back and is read again later: its tokens and
its generator stay, so its answer stays the same (preemption by recomputation, Kwon et al. 2023, arXiv:2309.06180).

T rows of a step, R of them with logits, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError, RunFault
from tunesmith.inference import rendering
from tunesmith.inference.adapters import Adapters
from tunesmith.inference.batched_attention import BATCHED, Span, Step
from tunesmith.inference.kv_cache import Cache
from tunesmith.inference.sequence import Sequence, Word
from tunesmith.inference.types import EngineRefused, Target
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.parts import causal_lm

STEP_ROWS = {"cpu": 256, "cuda": 2048}
"""Rows of a step at most, unless more sequences generate."""
CACHE_SHARE = 0.25
"""Of the memory that is free once the base is loaded: for keys and values."""

Outcome = tuple[Sequence, list[Word]]


class Base:
    """cache_tokens: that keys and values may be kept for; None what CACHE_SHARE gives. free_memory: bytes that are free
    on the host. InputError where the directory holds no model that this engine can run."""

    def __init__(self, directory: Path, device: torch.device, cache_tokens: int | None, free_memory: Callable[[], int]):
        self.directory, self.device = directory, device
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.model = causal_lm(load_model(directory, dtype=self.dtype, attention=BATCHED, device=device))
        self.model.requires_grad_(False)
        saved = self.model.config.architectures or [type(self.model).__name__]
        # An encoder too is loaded as a causal model, which it never was.
        if type(self.model).__name__ not in saved or not getattr(self.model, "_supports_attention_backend", False):
            raise InputError(
                f"{saved[0]} cannot be run by the embedded engine",
                where=str(directory),
                remedy="serve it with --engine vllm, if vLLM knows it",
            )
        config = self.model.config.get_text_config()
        self.num_layers = config.num_hidden_layers
        self.context = getattr(config, "max_position_embeddings", None) or 1 << 20
        self.adapters = Adapters(self.model, self.dtype, device)
        self.cache = Cache(self.context)
        self.cache_tokens = cache_tokens or self._cache_tokens(free_memory)
        self.active: list[Sequence] = []

    def tokenizer(self, adapter: str) -> Tokenizer:
        """The adapter's own where it was exported with one, else the base's."""
        target = Target(self.directory, Path(adapter) if adapter else None)
        return rendering.tokenizer_of(rendering.tokenizer_dir(target))

    def has_room(self, num_tokens: int) -> bool:
        """Whether one more sequence of so many tokens fits into the cache. The first always does."""
        return (
            not self.active or self.cache.reserved_tokens() + self.cache.would_reserve(num_tokens) <= self.cache_tokens
        )

    @torch.inference_mode()
    def join(self, sequence: Sequence) -> None:
        """Its adapter is in memory."""
        sequence.place = self.cache.open(min(len(sequence.tokens) + 1, self.context))
        self.active.append(sequence)

    @torch.inference_mode()
    def leave(self, sequence: Sequence) -> None:
        self.active.remove(sequence)
        if sequence.place is not None:
            self.cache.close(sequence.place)
            sequence.place = None

    @torch.inference_mode()
    def step(self) -> tuple[list[Outcome], list[Sequence]]:
        """What became of the sequences that have something to tell, those that ended have left; and those that had to
        give their places back and wait again. RunFault where the architecture cannot be run."""
        preempted = self._make_room()
        parts = self._parts()
        tokens: list[int] = []
        positions: list[int] = []
        spans, wanted = [], []
        for sequence, count in parts:
            place = sequence.place
            assert place is not None
            first = place.length
            spans.append(Span(len(tokens), len(tokens) + count, place))
            wanted += [
                (sequence, first + row, len(tokens) + row) for row in range(count) if sequence.wants_row(first + row)
            ]
            tokens += sequence.tokens[first : first + count]
            positions += range(first, first + count)
        logits_RV = self._forward(tokens, positions, spans, parts, wanted)
        for span in spans:
            span.place.length += span.stop - span.start
        told: dict[Sequence, list[Word]] = {}
        for (sequence, position, _), logits_V in zip(wanted, logits_RV, strict=True):
            if not sequence.ended:
                told.setdefault(sequence, []).extend(_taken(sequence, position, logits_V))
        for sequence in told:
            if sequence.ended:
                self.leave(sequence)
        return [(sequence, pieces) for sequence, pieces in told.items() if pieces], preempted

    def _forward(
        self,
        tokens: list[int],
        positions: list[int],
        spans: list[Span],
        parts: list[tuple[Sequence, int]],
        wanted: list[tuple[Sequence, int, int]],
    ) -> torch.Tensor:
        """Logits [R, V] of the wanted rows, fp32, on the CPU."""
        step = Step(spans, self.device)
        self.adapters.lanes.rows = _lanes([(sequence.lane, count) for sequence, count in parts])
        self.adapters.lanes.head = _lanes([(sequence.lane, 1) for sequence, _, _ in wanted])
        rows_R = torch.tensor([row for _, _, row in wanted], dtype=torch.int64, device=self.device)
        output = self.model(
            input_ids=torch.tensor([tokens], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            logits_to_keep=rows_R,
            step=step,
        )
        if len(step.layers) != self.num_layers:
            raise RunFault(
                f"{type(self.model).__name__} does not attend in all of its layers as the embedded engine needs it",
                where=str(self.directory),
                remedy="serve it with --engine vllm",
            )
        return output.logits[0].float().cpu()

    def _parts(self) -> list[tuple[Sequence, int]]:
        """Sequences of this step with the rows that each adds, sorted by adapter."""
        left = max(STEP_ROWS[self.device.type], len(self.active))
        parts = []
        ready = [sequence for sequence in self.active if _missing(sequence) == 1]
        left -= len(ready)
        for sequence in self.active:
            missing = _missing(sequence)
            count = 1 if missing == 1 else min(missing, left, sequence.most_rows() or left)
            if missing > 1:
                left -= count
            if count > 0:
                parts.append((sequence, count))
        return sorted(parts, key=lambda part: part[0].lane)

    def _make_room(self) -> list[Sequence]:
        """Before a step: room for what it adds. Those that joined last give way where the cache is full."""
        preempted = []
        for sequence in list(self.active):
            if sequence.place is None:
                continue
            self.cache.make_room(sequence.place, min(len(sequence.tokens), self.context))
        while len(self.active) > 1 and self.cache.reserved_tokens() > self.cache_tokens:
            last = self.active[-1]
            self.leave(last)
            preempted.append(last)
        return preempted

    def _cache_tokens(self, free_memory: Callable[[], int]) -> int:
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else free_memory()
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_token = 2 * self.num_layers * heads * size * torch.finfo(self.dtype).bits // 8
        return max(1, int(CACHE_SHARE * free) // per_token)


def _taken(sequence: Sequence, position: int, logits_V: torch.Tensor) -> list[Word]:
    """What the sequence tells of these logits. Where they are not numbers it ends: other sequences go on."""
    if logits_V.isnan().any():
        sequence.ended = True
        return [EngineRefused("The model's logits are not numbers (NaN): its weights or its adapter are damaged.")]
    return sequence.take(position, logits_V)


def _missing(sequence: Sequence) -> int:
    """Tokens that the cache does not hold yet."""
    assert sequence.place is not None
    return len(sequence.tokens) - sequence.place.length


def _lanes(rows: list[tuple[str, int]]) -> list[tuple[int, int, str]]:
    """(start, stop, adapter) of neighbouring rows with one adapter; the base's rows are left out."""
    lanes: list[tuple[int, int, str]] = []
    start = 0
    for name, count in rows:
        if lanes and lanes[-1][2] == name and lanes[-1][1] == start:
            lanes[-1] = (lanes[-1][0], start + count, name)
        elif name:
            lanes.append((start, start + count, name))
        start += count
    return lanes

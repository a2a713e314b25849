"""One model in memory, and its forward pass over the concatenated rows of many sequences.

T rows of a step, R of them with logits, V vocabulary.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.inference.base_runner import BaseRunner
from tunesmith.inference.batched_attention import BATCHED, Span, Step
from tunesmith.inference.kv_cache import Bucket, Slot
from tunesmith.inference.sequence import Sequence
from tunesmith.inference.types import RequestRejected
from tunesmith.modeling.loading.attention_choice import attention_of, set_attention
from tunesmith.modeling.loading.keyword_passing import passes_keywords
from tunesmith.modeling.proof.limits import limits_of, relative_difference

PROBE_TOKENS, PROMPT_TOKENS, OTHER_TOKENS = 12, 8, 5
"""Of the comparison with the model's own attention: of a sequence, of its prompt, and of the other one in the batch."""


class ModelRunner(BaseRunner):
    """Runs the rows of many sequences in one batch. Raises RequestRejected also if the engine does not support the
    model. on_layer: called by each layer of a forward pass."""

    def __init__(self, directory: Path, device: torch.device, on_layer: Callable[[], None] = lambda: None):
        super().__init__(directory, device, on_layer)
        if not passes_keywords(self.model):
            raise self.unsupported()
        set_attention(self.model, BATCHED)

    @torch.inference_mode()
    def require_batches(self) -> None:
        """Raise RequestRejected if the model's layers do not support batched attention, or if the logits of two
        sequences in a batch, of which one continues with the cache, are not those of its own attention on each alone.
        """
        one = [(7 * position + 3) % self.vocabulary("") for position in range(PROBE_TOKENS)]
        other = one[::-1][:OTHER_TOKENS]
        bucket = Bucket(capacity=PROBE_TOKENS)
        slots = [Slot(bucket, 0), Slot(bucket, 1)]
        for slot in slots:
            bucket.add(slot)
        self.adapters.rows.body = self.adapters.rows.head = []
        try:
            both_TV = self._probe([(slots[0], one[:PROMPT_TOKENS]), (slots[1], other)])
            rest = [self._probe([(slots[0], [token])]) for token in one[PROMPT_TOKENS:]]
        except (
            TypeError,
            ValueError,
            AttributeError,
            IndexError,
            RuntimeError,
        ) as error:  # it needs a mask, or a cache
            raise self.unsupported() from error
        batched = [(one, torch.cat([both_TV[:PROMPT_TOKENS], *rest])), (other, both_TV[PROMPT_TOKENS:])]
        with attention_of(self.model, None):
            for tokens, logits_TV in batched:
                own_TV = self.model(input_ids=torch.tensor([tokens], device=self.device), use_cache=False).logits[0]
                if relative_difference(logits_TV, own_TV.float().cpu()) > limits_of(None, self.model).gradient:
                    raise self.unsupported()

    def _probe(self, parts: list[tuple[Slot, list[int]]]) -> Tensor:
        """Logits of all rows of a step with the next tokens of each slot, fp32 [T, V] on the CPU."""
        tokens = [token for _, part in parts for token in part]
        positions = [position for slot, part in parts for position in range(slot.length, slot.length + len(part))]
        starts = [sum(len(part) for _, part in parts[:number]) for number in range(len(parts))]
        spans = [Span(start, start + len(part), slot) for start, (slot, part) in zip(starts, parts, strict=True)]
        options = {} if self.rotary is None else {"sequence_lengths": [PROBE_TOKENS] * len(tokens)}
        step = Step(spans, self.device, self.on_layer)
        logits_TV = self._forward(tokens, positions, list(range(len(tokens))), step=step, **options)
        for slot, part in parts:
            slot.length += len(part)
        return logits_TV

    @torch.inference_mode()
    def cache_bytes_per_token(self) -> int:
        """Size of the keys and values that a token adds to the cache, from a forward pass with one token: layers differ
        in their heads and head sizes, and some share those of others. Raises RequestRejected as `run`."""
        bucket = Bucket(capacity=1)
        slot = Slot(bucket, 0)
        bucket.add(slot)
        self.adapters.rows.body = self.adapters.rows.head = []
        options = {} if self.rotary is None else {"sequence_lengths": [1]}
        self._forward([0], [0], [0], step=Step([Span(0, 1, slot)], self.device, self.on_layer), **options)
        return bucket.num_bytes()

    def run(self, parts: list[tuple[Sequence, int]]) -> list[tuple[Sequence, int, Tensor]]:
        """Process the next tokens of each sequence. parts: (sequence, number of tokens), sorted by adapter.

        Returns (sequence, position, logits [V] after it, fp32 on the CPU) for the positions whose logits are needed.
        Raises RequestRejected if the architecture is not supported."""
        tokens: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        outputs: list[tuple[Sequence, int]] = []
        rows: list[int] = []
        lengths: list[int] = []
        for sequence, count in parts:
            assert sequence.slot is not None
            first = sequence.slot.length
            spans.append(Span(len(tokens), len(tokens) + count, sequence.slot))
            needed = [row for row in range(count) if sequence.needs_logits(first + row)]
            outputs += [(sequence, first + row) for row in needed]
            rows += [len(tokens) + row for row in needed]
            tokens += sequence.tokens[first : first + count]
            positions += range(first, first + count)
            lengths += [len(sequence.tokens)] * count
        self.adapters.rows.body = _ranges((sequence.adapter, count) for sequence, count in parts)
        self.adapters.rows.head = _ranges((sequence.adapter, 1) for sequence, _ in outputs)
        options = {} if self.rotary is None else {"sequence_lengths": lengths}
        step = Step(spans, self.device, self.on_layer)
        logits_RV = self._forward(tokens, positions, rows, step=step, **options)
        for span in spans:
            span.slot.length += span.stop - span.start
        return [
            (sequence, position, logits_V[: self.vocabulary(sequence.adapter)])
            for (sequence, position), logits_V in zip(outputs, logits_RV, strict=True)
        ]

    def _forward(
        self, tokens: list[int], positions: list[int], rows: list[int], *, step: Step, **options: list[int]
    ) -> Tensor:
        """Logits [R, V] of the rows, fp32 on the CPU."""
        output = self.model(
            input_ids=torch.tensor([tokens], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            logits_to_keep=torch.tensor(rows, dtype=torch.int64, device=self.device),
            step=step,
            **options,
        )
        if len(step.layers) != self.num_layers:
            name = type(self.model).__name__
            message = f"{name} has layers that do not support batched attention"
            raise RequestRejected("unsupported_layers", message, architecture=name, directory=self.directory)
        return output.logits[0].float().cpu()


def _ranges(rows: Iterable[tuple[str, int]]) -> list[tuple[int, int, str]]:
    """(start, stop, adapter) of adjacent rows with the same adapter, without rows of the base model."""
    ranges: list[tuple[int, int, str]] = []
    start = 0
    for name, count in rows:
        if ranges and ranges[-1][2] == name and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], start + count, name)
        elif name:
            ranges.append((start, start + count, name))
        start += count
    return ranges

"""One model in memory, and its forward pass over the concatenated rows of many sequences.

T rows of a step, R of them with logits, V vocabulary.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.inference.adapters import Adapters
from tunesmith.inference.batched_attention import BATCHED, Span, Step
from tunesmith.inference.sequence import Sequence
from tunesmith.inference.types import MAX_CONTEXT, RequestRejected
from tunesmith.modeling.loading.document_rope import document_rotary
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import inference_dtype


class ModelRunner:
    """A base model and its adapters. Raises RequestRejected if the engine does not support the model, InputError if it
    cannot be loaded. on_layer: called by each layer of a forward pass."""

    def __init__(self, directory: Path, device: torch.device, on_layer: Callable[[], None] = lambda: None):
        self.directory, self.device, self.on_layer = directory, device, on_layer
        self.dtype = inference_dtype(device)
        self.model = causal_lm(load_model(directory, dtype=self.dtype, attention=BATCHED, device=device))
        self.model.requires_grad_(False)
        architectures = self.model.config.architectures or [type(self.model).__name__]
        # An encoder, too, can be loaded as a causal model.
        if type(self.model).__name__ not in architectures or not getattr(
            self.model, "_supports_attention_backend", False
        ):
            message = f"{architectures[0]} cannot be run in batches"
            raise RequestRejected("unsupported_model", message, architecture=architectures[0], directory=directory)
        config = self.model.config.get_text_config()
        self.num_layers: int = config.num_hidden_layers
        self.context: int = getattr(config, "max_position_embeddings", None) or MAX_CONTEXT
        self.adapters = Adapters(self.model, self.dtype, device)
        self.rotary = document_rotary(self.model)

    @property
    def vocabulary(self) -> int:
        return self.model.get_input_embeddings().num_embeddings  # type: ignore[return-value]

    def num_bytes(self) -> int:
        """Size of the base model's weights."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    def cache_bytes_per_token(self) -> int:
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * self.num_layers * heads * size * torch.finfo(self.dtype).bits // 8

    def drop_stale_keys(self, sequences: Iterable[Sequence]) -> None:
        """Discard the cached keys of sequences that grew past a limit of a length-dependent rotary embedding: all their
        tokens are recomputed with the frequencies of the new length, as for a prompt of that length."""
        if self.rotary is None:
            return
        for sequence in sequences:
            assert sequence.slot is not None
            tables = self.rotary.tables_of(len(sequence.tokens))
            if sequence.slot.rope_tables != tables:
                sequence.slot.length, sequence.slot.rope_tables = 0, tables

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
            (sequence, position, logits_V) for (sequence, position), logits_V in zip(outputs, logits_RV, strict=True)
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

"""One model in memory, and its forward pass over the rows of many sequences, which lie end to end.

T rows of a step, R of them with logits, V vocabulary.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.inference.adapters import Adapters
from tunesmith.inference.batched_attention import BATCHED, Span, Step
from tunesmith.inference.sequence import Sequence
from tunesmith.inference.types import MAX_CONTEXT, RequestRejected
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.parts import causal_lm


class ModelRunner:
    """The base model of a directory and its adapters. Raises RequestRejected where this engine cannot run it,
    InputError where it cannot be loaded."""

    def __init__(self, directory: Path, device: torch.device):
        self.directory, self.device = directory, device
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.model = causal_lm(load_model(directory, dtype=self.dtype, attention=BATCHED, device=device))
        self.model.requires_grad_(False)
        saved = self.model.config.architectures or [type(self.model).__name__]
        # An encoder too is loaded as a causal model, which it never was.
        if type(self.model).__name__ not in saved or not getattr(self.model, "_supports_attention_backend", False):
            message = f"{saved[0]} cannot be run in batches"
            raise RequestRejected("unsupported_model", message, architecture=saved[0], directory=directory)
        config = self.model.config.get_text_config()
        self.num_layers: int = config.num_hidden_layers
        self.context: int = getattr(config, "max_position_embeddings", None) or MAX_CONTEXT
        self.adapters = Adapters(self.model, self.dtype, device)

    @property
    def vocabulary(self) -> int:
        return self.model.get_input_embeddings().num_embeddings  # type: ignore[return-value]

    def num_bytes(self) -> int:
        """Of the base's weights."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    def cache_bytes_per_token(self) -> int:
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * self.num_layers * heads * size * torch.finfo(self.dtype).bits // 8

    def run(self, parts: list[tuple[Sequence, int]]) -> list[tuple[Sequence, int, Tensor]]:
        """Adds the next tokens of each sequence to the cache, so many as the part says. Gives (sequence, position,
        logits [V] behind it, fp32 on the CPU) where the sequence needs them. parts: sorted by adapter.

        Raises RequestRejected where the architecture cannot be run."""
        tokens: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        outputs: list[tuple[Sequence, int]] = []
        rows: list[int] = []
        for sequence, count in parts:
            assert sequence.slot is not None
            first = sequence.slot.length
            spans.append(Span(len(tokens), len(tokens) + count, sequence.slot))
            needed = [row for row in range(count) if sequence.needs_logits(first + row)]
            outputs += [(sequence, first + row) for row in needed]
            rows += [len(tokens) + row for row in needed]
            tokens += sequence.tokens[first : first + count]
            positions += range(first, first + count)
        self.adapters.rows.body = _ranges((sequence.adapter, count) for sequence, count in parts)
        self.adapters.rows.head = _ranges((sequence.adapter, 1) for sequence, _ in outputs)
        logits_RV = self._forward(tokens, positions, rows, Step(spans, self.device))
        for span in spans:
            span.slot.length += span.stop - span.start
        return [
            (sequence, position, logits_V) for (sequence, position), logits_V in zip(outputs, logits_RV, strict=True)
        ]

    def _forward(self, tokens: list[int], positions: list[int], rows: list[int], step: Step) -> Tensor:
        """Logits [R, V] of the rows, fp32, on the CPU."""
        output = self.model(
            input_ids=torch.tensor([tokens], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            logits_to_keep=torch.tensor(rows, dtype=torch.int64, device=self.device),
            step=step,
        )
        if len(step.layers) != self.num_layers:
            name = type(self.model).__name__
            message = f"{name} does not attend in all of its layers as batches need it"
            raise RequestRejected("unsupported_layers", message, architecture=name, directory=self.directory)
        return output.logits[0].float().cpu()


def _ranges(rows: Iterable[tuple[str, int]]) -> list[tuple[int, int, str]]:
    """(start, stop, adapter) of neighbouring rows with one adapter; the base's rows are left out."""
    ranges: list[tuple[int, int, str]] = []
    start = 0
    for name, count in rows:
        if ranges and ranges[-1][2] == name and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], start + count, name)
        elif name:
            ranges.append((start, start + count, name))
        start += count
    return ranges

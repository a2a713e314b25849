"""What every runner of a model has: the base model in memory, its adapters, and facts about them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from tunesmith.inference.adapters import Adapters
from tunesmith.inference.sequence import Sequence
from tunesmith.inference.types import MAX_CONTEXT, RequestRejected
from tunesmith.modeling.loading.document_rope import document_rotary
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import inference_dtype


class BaseRunner:
    """A base model and its adapters. Raises RequestRejected for an encoder, InputError if the model cannot be loaded.
    on_layer: called as a forward pass progresses."""

    def __init__(self, directory: Path, device: torch.device, on_layer: Callable[[], None]):
        self.directory, self.device, self.on_layer = directory, device, on_layer
        self.dtype = inference_dtype(device)
        self.model: Any = causal_lm(load_model(directory, dtype=self.dtype, device=device))
        self.model.requires_grad_(False)
        architectures = self.model.config.architectures or [type(self.model).__name__]
        if type(self.model).__name__ not in architectures:  # an encoder, too, can be loaded as a causal model
            raise self.unsupported(architectures[0])
        config = self.model.config.get_text_config()
        self.num_layers: int = getattr(config, "num_hidden_layers", 1)
        self.context: int = getattr(config, "max_position_embeddings", None) or MAX_CONTEXT
        self.adapters = Adapters(self.model, self.dtype, device)
        self.rotary = document_rotary(self.model)

    def unsupported(self, architecture: str | None = None) -> RequestRejected:
        """Return the rejection of a model that cannot be run in batches. architecture: None: the loaded class."""
        name = architecture or type(self.model).__name__
        message = f"{name} cannot be run in batches"
        return RequestRejected("unsupported_model", message, architecture=name, directory=self.directory)

    def vocabulary(self, adapter: str) -> int:
        """Number of tokens, with those that an adapter adds. adapter: loaded, or empty."""
        return self.adapters.tokens.num_tokens(adapter)

    def num_bytes(self) -> int:
        """Size of the base model's weights."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

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

"""Rotary embeddings whose frequencies depend on the length of a sequence (longrope, dynamic): of each document alone.

transformers takes the longest position of the whole batch, and dynamic frequencies also remember earlier batches: with
packing, the loss of a row would depend on its neighbours. Here each document gets the frequencies that transformers
computes for it alone. A table is the set of frequencies for a length: `table_of`.

B rows, T tokens of a row, R rotated values of a head.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

BY_LENGTH = ("longrope", "dynamic")
"""Types of rotary embedding whose frequencies depend on the length."""


class DocumentRotary(nn.Module):
    """Replaces the rotary embedding of a model. The lengths of sequences come from the backbone's keyword arguments
    (`_pass_lengths`); without them, each row of the batch is one sequence that ends at its largest position."""

    def __init__(self, rotary: Any):
        super().__init__()
        self.rotary = rotary
        self.lengths: Tensor | None = None
        self._forward = inspect.unwrap(type(rotary).forward)
        self._tables: dict[tuple[str | None, int], Tensor] = {}

    def table_of(self, length: int, layer_type: str | None = None) -> int:
        """Return the number of the table for sequences of this length: 0 is the model's own, of short sequences."""
        kind, parameters = self._type(layer_type)
        if kind == "longrope":
            return int(length > parameters["original_max_position_embeddings"])
        return length if kind == "dynamic" and length > self.rotary.config.max_position_embeddings else 0

    def tables_of(self, length: int) -> tuple[int, ...]:
        """Return the numbers of the tables of all kinds of layers. Cached keys are valid while they do not change."""
        kinds = self.rotary.rope_type
        return tuple(self.table_of(length, kind) for kind in (kinds if isinstance(kinds, dict) else (None,)))

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """Return cos and sin, [B, T, R]. x: for dtype and device; position_ids: int64 [B, T]."""
        lengths_BT = position_ids.amax(-1, keepdim=True).expand_as(position_ids) + 1
        if self.lengths is not None:
            lengths_BT = self.lengths.to(position_ids.device).expand_as(position_ids)
        numbers = {int(length): self.table_of(int(length), layer_type) for length in lengths_BT.unique()}
        cos, sin = self._rotation(x, position_ids, layer_type, min(numbers.values()))
        for number in set(numbers.values()) - {min(numbers.values())}:
            lengths = [length for length, other in numbers.items() if other == number]
            is_here_BT1 = torch.isin(lengths_BT, torch.tensor(lengths, device=lengths_BT.device))[..., None]
            other_cos, other_sin = self._rotation(x, position_ids, layer_type, number)
            cos, sin = torch.where(is_here_BT1, other_cos, cos), torch.where(is_here_BT1, other_sin, sin)
        return cos, sin

    def _rotation(self, x: Tensor, position_ids: Tensor, layer_type: str | None, number: int) -> tuple[Tensor, Tensor]:
        """Result of transformers' own forward, with the frequencies of this table."""
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        setattr(self.rotary, name, self._table(layer_type, number, x.device))
        options = {} if layer_type is None else {"layer_type": layer_type}
        with torch.no_grad():
            return self._forward(self.rotary, x, position_ids, **options)

    def _table(self, layer_type: str | None, number: int, device: torch.device) -> Tensor:
        kind, parameters = self._type(layer_type)
        if kind not in BY_LENGTH:
            return getattr(self.rotary, "inv_freq" if layer_type is None else f"{layer_type}_inv_freq").to(device)
        if number and kind == "dynamic":  # one table for each length: not kept
            return ROPE_INIT_FUNCTIONS[kind](
                self.rotary.config, device, seq_len=torch.tensor(number, device=device), layer_type=layer_type
            )[0]
        if (layer_type, number) not in self._tables:
            length = parameters["original_max_position_embeddings"] + 1 if number else None
            frequencies, _ = ROPE_INIT_FUNCTIONS[kind](
                self.rotary.config, device, seq_len=length, layer_type=layer_type
            )
            self._tables[layer_type, number] = frequencies
        return self._tables[layer_type, number].to(device)

    def _type(self, layer_type: str | None) -> tuple[str, dict[str, Any]]:
        kinds, parameters = self.rotary.rope_type, self.rotary.config.rope_parameters
        return (kinds, parameters) if layer_type is None else (kinds[layer_type], parameters[layer_type])


def rotate_by_document(model: nn.Module) -> None:
    """Replace the model's rotary embedding if its frequencies depend on the length; otherwise change nothing."""
    for owner in list(model.modules()):
        rotary = getattr(owner, "rotary_emb", None)
        if isinstance(rotary, nn.Module) and not isinstance(rotary, DocumentRotary) and _depends_on_length(rotary):
            owner.rotary_emb = DocumentRotary(rotary)
            owner.register_forward_pre_hook(_pass_lengths, with_kwargs=True)


def document_rotary(model: nn.Module) -> DocumentRotary | None:
    """Return the replaced rotary embedding of a model; None if its frequencies do not depend on the length."""
    return next((module for module in model.modules() if isinstance(module, DocumentRotary)), None)


def _depends_on_length(rotary: Any) -> bool:
    kinds = getattr(rotary, "rope_type", None)
    return any(kind in BY_LENGTH for kind in (kinds.values() if isinstance(kinds, dict) else (kinds,)))


def _pass_lengths(owner: Any, _arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Pass the length of each token's sequence to the rotary embedding, [T]. `sequence_lengths`: of each token (batched
    generation); `documents`: the packed documents."""
    per_token, documents = keywords.get("sequence_lengths"), keywords.get("documents")
    lengths = None
    if per_token is not None:
        lengths = torch.tensor(per_token)
    elif documents is not None:
        lengths = torch.tensor(documents.lengths).repeat_interleave(torch.tensor(documents.lengths))
    owner.rotary_emb.lengths = lengths

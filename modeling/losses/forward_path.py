"""How documents go through a model: packed in one stream, or unpacked as padded batches of similar lengths.

D documents, T tokens of all of them, B documents of a batch, S tokens of its longest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import RunFault
from tunesmith.modeling.loading import attention_choice
from tunesmith.modeling.loading.packed_attention_hook import PACKED

SIMILAR = 0.75
"""Documents of a padded batch have at least this share of its longest document's tokens: at most a quarter is
padding."""


@dataclass(frozen=True)
class ForwardPath:
    """How a loss module computes. The model proof (modeling/proof) finds which paths equal the model's own forward."""

    packed: bool = True
    """Documents are concatenated, with packed attention; otherwise padded batches, with the model's own attention."""
    fused: bool = True
    """Backbone, then fused head and loss; otherwise the logits of the model's own forward."""
    padded: bool = True
    """Unpacked documents of similar lengths share a batch, with padding; otherwise only those of the same length, for
    models on whose results padding has an influence (attention that selects tokens by a score)."""
    one_batch: bool = False
    """All documents of a micro-batch are one padded batch. Required if weights are gathered for each forward (ZeRO-3):
    ranks must run the same number of forwards."""

    def __post_init__(self) -> None:
        if self.packed and not self.fused:
            raise ValueError("the model's own logits are computed from unpacked documents only")

    def __str__(self) -> str:
        """The path for tables and messages."""
        rows = "packed" if self.packed else "unpacked" if self.padded else "unpacked without padding"
        return f"{rows}, {'fused loss' if self.fused else 'own logits'}"


PACKED_AND_FUSED = ForwardPath()
"""The fastest path, which the classes with attention through transformers' interface support."""


class PaddedBatch(NamedTuple):
    """Documents of similar lengths, padded on the right."""

    tokens_BS: Tensor
    """int64; padding repeats each document's last token."""
    mask_BS: Tensor
    """bool: True where there is a token."""
    places_n: Tensor
    """int64: place in the stream of each token of the batch, in the order of `tokens_BS[mask_BS]`."""

    def model_inputs(self) -> dict[str, Any]:
        """Return the arguments of the model's forward. No mask without padding: attention is then faster."""
        inputs: dict[str, Any] = {"input_ids": self.tokens_BS, "use_cache": False}
        if self.num_padding:
            inputs["attention_mask"] = self.mask_BS.long()
        return inputs

    @property
    def num_padding(self) -> int:
        """Number of padding tokens. From shapes: does not wait for the device."""
        return self.tokens_BS.numel() - len(self.places_n)


def similar_lengths(lengths: Sequence[int], *, one_batch: bool = False, same_length: bool = False) -> list[list[int]]:
    """Group documents of similar lengths: indices of the documents of each batch, longest first. Depends only on the
    arguments. Documents without tokens are left out. same_length: without any padding, unless they are one batch."""
    share = 1.0 if same_length else SIMILAR
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for i in order:
        if groups and (one_batch or lengths[i] >= share * lengths[groups[-1][0]]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def padded_batches(
    tokens_T: Tensor, lengths: Sequence[int], *, one_batch: bool = False, same_length: bool = False
) -> Iterator[PaddedBatch]:
    """Yield the documents as padded batches. tokens: int64 [T]; lengths: tokens of each document, summing to T. Options
    as of `similar_lengths`."""
    device = tokens_T.device
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    for group in similar_lengths(lengths, one_batch=one_batch, same_length=same_length):
        longest = lengths[group[0]]
        offsets_S = torch.arange(longest)
        lengths_B1 = torch.tensor([[lengths[i]] for i in group])
        starts_B1 = torch.tensor([[starts[i]] for i in group])
        mask_BS = offsets_S[None] < lengths_B1
        places_BS = starts_B1 + torch.minimum(offsets_S[None], lengths_B1 - 1)
        places_n = places_BS[mask_BS].to(device)
        yield PaddedBatch(tokens_T[places_BS.to(device)], mask_BS.to(device), places_n)


def set_attention(model: PreTrainedModel, path: ForwardPath) -> None:
    """Set the attention implementation of a path. RunFault if the model does not let it be chosen, and the documents
    are packed."""
    attention_choice.set_attention(model, PACKED if path.packed else None)
    if path.packed and model.config._attn_implementation != PACKED:
        raise RunFault(f"{type(model).__name__} does not use transformers' attention interface")

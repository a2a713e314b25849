"""Losses from the logits of a model's own forward, for classes whose head cannot be separated from their backbone.

D documents, T tokens of all of them, n tokens of one padded batch, N supervised ones, V vocabulary.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.linear_cross_entropy import IGNORED
from tunesmith.modeling.losses.forward_path import PaddedBatch


class SupervisedLogits(NamedTuple):
    """Logits of the supervised tokens of one padded batch."""

    logits_NV: Tensor
    labels_N: Tensor
    places_N: Tensor
    """int64: place of each token in the stream."""


def supervised_logits(
    model: PreTrainedModel, batches: Iterator[PaddedBatch], labels_T: Tensor
) -> Iterator[SupervisedLogits]:
    """Yield the logits of each batch from the model's own forward. labels: int64 [T], -100: not supervised."""
    for batch in batches:
        output = model(**batch.model_inputs())
        logits_BSV = output.logits if hasattr(output, "logits") else output[0]
        labels_BS = torch.full_like(batch.tokens_BS, IGNORED)
        labels_BS[batch.mask_BS] = labels_T[batch.places_n]
        places_BS = torch.zeros_like(batch.tokens_BS)
        places_BS[batch.mask_BS] = batch.places_n
        is_supervised_BS = labels_BS != IGNORED
        yield SupervisedLogits(logits_BSV[is_supervised_BS], labels_BS[is_supervised_BS], places_BS[is_supervised_BS])


def loss_sums(
    parts: Iterator[SupervisedLogits], kernels: Kernels, *, label_smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Return the summed loss, fp32 scalar with gradient, and the number of hits, int64 scalar."""
    sums = [
        kernels.choose("cross_entropy", part.logits_NV)(
            part.logits_NV, part.labels_N, label_smoothing=label_smoothing, soft_cap=None, z_loss=z_loss
        )
        for part in parts
    ]
    losses, hits = zip(*sums, strict=True)
    return torch.stack(losses).sum(), torch.stack(hits).sum()


def token_losses(parts: Iterator[SupervisedLogits], labels_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each token, fp32 [T] with gradient, and whether it has the largest logit, bool [T]; zero where
    it is not supervised."""
    loss_T = labels_T.new_zeros(len(labels_T), dtype=torch.float32)
    correct_T = torch.zeros_like(labels_T, dtype=torch.bool)
    for part in parts:
        loss_N = cross_entropy(part.logits_NV.float(), part.labels_N, reduction="none")
        loss_T = loss_T.index_put((part.places_N,), loss_N)
        correct_T[part.places_N] = part.logits_NV.detach().argmax(-1) == part.labels_N
    return loss_T, correct_T

"""From tokens to the sum of the losses of the target's tokens, for encoder-decoder models (data/encoders/seq2seq.py).

Their attention knows no documents end to end: rows are laid into rectangles, padded and masked, inside of this module
only. D documents, S source tokens, U target tokens (the longest of the batch), V vocabulary.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tunesmith.kernels.linear_cross_entropy import IGNORED
from tunesmith.modeling.losses.causal import CausalLoss, DocumentScores, LossSums
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_to


class SequenceLoss(CausalLoss):
    """Wraps an encoder-decoder model, with or without adapters. Logits are made for the target's tokens alone."""

    attention = None

    def forward(
        self,
        tokens_T: Tensor,
        labels_T: Tensor,
        positions_T: Tensor,
        lengths: list[int],
        label_smoothing: float = 0.0,
        by_token: bool = False,
    ) -> LossSums:
        """As CausalLoss. by_token: losses and hits [D, U], zero where there is no target."""
        sources, targets = split_documents(tokens_T, labels_T, lengths)
        targets_DU = pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        with autocast_to(self.compute_dtype, tokens_T.device):
            logits_DUV = teacher_forced(causal_lm(self.model), sources, targets_DU, outer=self.model)
        loss_DU = cross_entropy(
            logits_DUV.float().transpose(1, 2),
            targets_DU,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=label_smoothing,
        )
        hits_DU = logits_DUV.detach().argmax(-1) == targets_DU
        num_supervised = int((targets_DU != IGNORED).sum())
        if by_token:
            return LossSums(loss_DU, hits_DU, num_supervised)
        return LossSums(loss_DU.sum(), hits_DU.sum(), num_supervised)

    @torch.no_grad()
    def score(self, tokens_T: Tensor, labels_T: Tensor, positions_T: Tensor, lengths: list[int]) -> DocumentScores:
        with evaluating(self):
            loss_DU, hits_DU, _ = self(tokens_T, labels_T, positions_T, lengths, by_token=True)
        counts = [int((part != IGNORED).sum()) for part in labels_T.cpu().split(lengths)]
        return DocumentScores(loss_DU.double().sum(1).cpu().numpy(), np.array(counts), hits_DU.sum(1).cpu().numpy())


def split_documents(tokens_T: Tensor, labels_T: Tensor, lengths: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Source and target tokens of each document. The source ends at the token behind which the first target stands; of
    a filler, which has none, the last token is a target that is not counted."""
    sources, targets = [], []
    for tokens_t, labels_t in zip(tokens_T.split(lengths), labels_T.split(lengths), strict=True):
        supervised = (labels_t != IGNORED).nonzero()
        first = int(supervised[0]) if len(supervised) else len(tokens_t) - 2
        sources.append(tokens_t[: first + 1])
        targets.append(labels_t[first:-1])
    return sources, targets


def teacher_forced(
    model: PreTrainedModel, sources: list[Tensor], targets_DU: Tensor, *, outer: torch.nn.Module | None = None
) -> Tensor:
    """Logits [D, U, V] of the targets, each made from those before it. outer: what wraps the model, if anything."""
    pad = model.config.pad_token_id or 0
    sources_DS = pad_sequence(sources, batch_first=True, padding_value=pad)
    lengths_D = torch.tensor([len(source) for source in sources], device=sources_DS.device)
    mask_DS = (torch.arange(sources_DS.shape[1], device=sources_DS.device)[None] < lengths_D[:, None]).long()
    inner: Any = model
    start = inner.config.decoder_start_token_id
    begun_DU = torch.cat([torch.full_like(targets_DU[:, :1], start), targets_DU[:, :-1]], dim=1)
    called: Any = outer if outer is not None else model
    return called(
        input_ids=sources_DS,
        attention_mask=mask_DS,
        decoder_input_ids=begun_DU.masked_fill(begun_DU == IGNORED, pad),
        use_cache=False,
    ).logits

"""Summed cross-entropy of the target tokens of encoder-decoder models (data/encoders/seq2seq.py).

Their attention does not support concatenated documents: rows are padded and masked, inside this module only. T tokens
of all concatenated documents, D documents, S source tokens, U target tokens (the longest of the batch), V vocabulary.
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
    """Loss module around an encoder-decoder model, with or without adapters. Logits are computed only for target
    tokens."""

    sets_attention = False

    def forward(
        self,
        tokens_T: Tensor,
        labels_T: Tensor,
        positions_T: Tensor,
        lengths: list[int],
        label_smoothing: float = 0.0,
        by_token: bool = False,
    ) -> LossSums:
        """As CausalLoss. by_token: losses, fp32 [D, U], and hits, bool [D, U], zero at padding."""
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
        num_supervised = (targets_DU != IGNORED).sum()
        if by_token:
            return LossSums(loss_DU, hits_DU, num_supervised)
        return LossSums(loss_DU.sum(), hits_DU.sum(), num_supervised)

    @torch.no_grad()
    def score(self, tokens_T: Tensor, labels_T: Tensor, positions_T: Tensor, lengths: list[int]) -> DocumentScores:
        """As CausalLoss, over the target tokens of each document."""
        with evaluating(self):
            loss_DU, hits_DU, _ = self(tokens_T, labels_T, positions_T, lengths, by_token=True)
        counts = [int((part != IGNORED).sum()) for part in labels_T.cpu().split(lengths)]
        return DocumentScores(loss_DU.double().sum(1).cpu().numpy(), np.array(counts), hits_DU.sum(1).cpu().numpy())


def split_documents(tokens_T: Tensor, labels_T: Tensor, lengths: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Split packed documents into source and target tokens: int64 tensors [S] and [U] per document.

    tokens, labels: int64 [T]. The source ends at the token before the first target. In a filler, which has no target,
    the last token is an ignored target.
    """
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
    """Return the logits [D, U, V] of the targets with teacher forcing, each given the targets before it.

    sources: int64 [S] per document; targets: int64 [D, U], padded with -100. outer: the wrapper of the model, if any.
    """
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

"""From tokens to the sum of the losses of their rows' labels.

Documents end in their targets (data/encoders/classification.py).

T tokens of all documents end to end, t without the targets, D documents, C logits, K targets of a document (1, or C).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tunesmith.kernels.linear_cross_entropy import IGNORED
from tunesmith.modeling.loading.heads import Labels, pooled_logits, position_start
from tunesmith.modeling.losses.causal import CausalLoss, DocumentScores, LossSums
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_to


class ClassificationOutput(NamedTuple):
    """logits: fp32 [D, C]. targets: int64 [D, K]. loss: fp32 [D, K], of each target, weighted."""

    logits: Tensor
    targets: Tensor
    loss: Tensor


class ClassificationLoss(CausalLoss):
    """Wraps a sequence classifier, with or without adapters.

    Cross-entropy for single_label, binary cross-entropy for binary and multi_label, over the targets: the mean that
    training lowers is over rows, or over rows and labels. weights: of each label, or of the positive rows of each
    logit; fp32 [C] or None.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: Labels,
        weights: list[float] | None,
        *,
        compute_dtype: torch.dtype | None = None,
        neftune_alpha: float | None = None,
    ):
        super().__init__(model, compute_dtype=compute_dtype, neftune_alpha=neftune_alpha)
        self.labels = labels
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)

    def forward(
        self,
        tokens_T: Tensor,
        labels_T: Tensor,
        positions_T: Tensor,
        lengths: list[int],
        label_smoothing: float = 0.0,
        by_token: bool = False,
    ) -> LossSums:
        """As CausalLoss: labels[t] is the target that stands behind token t, -100 where none does. by_token: the losses
        and hits of the targets one by one, document by document."""
        found = self.classify(tokens_T, labels_T, positions_T, lengths, label_smoothing)
        counts = found.targets != IGNORED
        hits_DK = self.hits(found) & counts
        loss_DK = torch.where(counts, found.loss, torch.zeros_like(found.loss))
        if by_token:
            return LossSums(loss_DK, hits_DK, int(counts.sum()))
        return LossSums(loss_DK.sum(), hits_DK.sum(), int(counts.sum()))

    def classify(
        self, tokens_T: Tensor, labels_T: Tensor, positions_T: Tensor, lengths: list[int], label_smoothing: float = 0.0
    ) -> ClassificationOutput:
        """Logits and losses of the documents; targets that are -100 (a filler's) give a loss of no meaning."""
        count = self.labels.num_targets
        stops_D = torch.tensor(lengths, device=tokens_T.device).cumsum(0)
        places_DK = stops_D[:, None] - 1 - torch.arange(count, 0, -1, device=tokens_T.device)[None]
        targets_DK = labels_T[places_DK]
        is_text_T = torch.ones_like(tokens_T, dtype=torch.bool)
        is_text_T[places_DK + 1] = False
        texts = [length - count for length in lengths]
        logits_DC = self.logits(tokens_T[is_text_T], positions_T[is_text_T], texts)
        return ClassificationOutput(logits_DC, targets_DK, self._losses(logits_DC, targets_DK, label_smoothing))

    def logits(self, tokens_t: Tensor, positions_t: Tensor, lengths: list[int]) -> Tensor:
        """fp32 [D, C] of texts without targets."""
        model = causal_lm(self.model)
        with autocast_to(self.compute_dtype, tokens_t.device):
            hidden_tH = self._hidden(tokens_t, positions_t + position_start(model), lengths)
            return pooled_logits(model, hidden_tH, lengths).float()

    @torch.no_grad()
    def score(self, tokens_T: Tensor, labels_T: Tensor, positions_T: Tensor, lengths: list[int]) -> DocumentScores:
        with evaluating(self):
            loss_DK, hits_DK, _ = self(tokens_T, labels_T, positions_T, lengths, by_token=True)
        counts_D = torch.full((len(lengths),), self.labels.num_targets)
        return DocumentScores(loss_DK.double().sum(1).cpu().numpy(), counts_D.numpy(), hits_DK.sum(1).cpu().numpy())

    def _losses(self, logits_DC: Tensor, targets_DK: Tensor, label_smoothing: float) -> Tensor:
        weights = None if self.weights is None else self.weights.to(logits_DC.device)
        known_DK = targets_DK.clamp(min=0)
        if self.labels.kind == "single_label":
            loss_D = cross_entropy(
                logits_DC, known_DK[:, 0], weight=weights, reduction="none", label_smoothing=label_smoothing
            )
            return loss_D[:, None]
        return binary_cross_entropy_with_logits(logits_DC, known_DK.float(), pos_weight=weights, reduction="none")

    def hits(self, found: ClassificationOutput) -> Tensor:
        """bool [D, K]: targets that are decided right."""
        if self.labels.kind == "single_label":
            return (found.logits.argmax(-1) == found.targets[:, 0])[:, None]
        return (found.logits > 0) == (found.targets == 1)


def class_weights(wanted: str | list[float] | None, kind: str, counts: list[int], num_rows: int) -> list[float] | None:
    """The weights of a recipe in numbers. counts: training rows of each label, of a binary task negative and positive.

    balanced, single_label: n / (C n_c), scikit-learn's, so that the mean weight of a row is 1. Others: negative over
    positive rows. A label without rows weighs 1.
    """
    if not isinstance(wanted, str):
        return wanted
    if kind == "single_label":
        return [num_rows / (len(counts) * count) if count else 1.0 for count in counts]
    positive = counts[1:] if kind == "binary" else counts
    return [(num_rows - count) / count if 0 < count < num_rows else 1.0 for count in positive]

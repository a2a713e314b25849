"""Summed classification losses.

Documents end with their targets (data/encoders/classification.py).

T tokens of all concatenated documents, t without the targets, D documents, C logits, K targets per document (1, or C).
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
    """logits: fp32 [D, C]. targets: int64 [D, K]. loss: fp32 [D, K], weighted loss of each target, with gradient."""

    logits: Tensor
    targets: Tensor
    loss: Tensor


class ClassificationLoss(CausalLoss):
    """Loss module around a sequence classifier, with or without adapters.

    Cross-entropy for single_label, binary cross-entropy for binary and multi_label, summed over targets: training
    minimizes the mean over rows, or over rows and labels. weights: of each label (single_label), or of the positive
    rows of each logit; C values or None.
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
        """As CausalLoss: labels[t] is the target that follows token t, or -100. by_token: losses, fp32 [D, K], and
        hits, bool [D, K], of each target instead of their sums."""
        output = self.classify(tokens_T, labels_T, positions_T, lengths, label_smoothing)
        counts = output.targets != IGNORED
        hits_DK = self.hits(output) & counts
        loss_DK = torch.where(counts, output.loss, torch.zeros_like(output.loss))
        if by_token:
            return LossSums(loss_DK, hits_DK, counts.sum())
        return LossSums(loss_DK.sum(), hits_DK.sum(), counts.sum())

    def classify(
        self, tokens_T: Tensor, labels_T: Tensor, positions_T: Tensor, lengths: list[int], label_smoothing: float = 0.0
    ) -> ClassificationOutput:
        """Return logits and losses of the documents, arguments as for `forward`. Targets of -100 (in fillers) have a
        meaningless loss."""
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
        """Return the logits, fp32 [D, C], of texts without targets: tokens, positions int64 [t], lengths of the
        texts."""
        model = causal_lm(self.model)
        with autocast_to(self.compute_dtype, tokens_t.device):
            hidden_tH = self._hidden(tokens_t, positions_t + position_start(model), lengths)
            return pooled_logits(model, hidden_tH, lengths).float()

    def more_inputs(self, tokens_T: Tensor, lengths: list[int]) -> dict[str, Tensor]:
        """Return the token types, int64 [1, T], as the tokenizer gives them: 1 after a text's first separator."""
        if self.labels.separator is None:
            return {}
        is_separator_T = (tokens_T == self.labels.separator).long()
        before_T = is_separator_T.cumsum(0) - is_separator_T
        lengths_D = torch.tensor(lengths, device=tokens_T.device)
        first_D = lengths_D.cumsum(0) - lengths_D
        return {"token_type_ids": (before_T > before_T[first_D].repeat_interleave(lengths_D)).long()[None]}

    @torch.no_grad()
    def score(self, tokens_T: Tensor, labels_T: Tensor, positions_T: Tensor, lengths: list[int]) -> DocumentScores:
        """As CausalLoss, over the targets of each document."""
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

    def hits(self, output: ClassificationOutput) -> Tensor:
        """Return which targets are predicted correctly, bool [D, K]."""
        if self.labels.kind == "single_label":
            return (output.logits.argmax(-1) == output.targets[:, 0])[:, None]
        return (output.logits > 0) == (output.targets == 1)


def class_weights(setting: str | list[float] | None, kind: str, counts: list[int], num_rows: int) -> list[float] | None:
    """Return the class weights of a recipe as numbers.

    setting: the recipe's class_weights. kind: see Labels. counts: training rows of each label, for a binary task
    negative and positive ones. num_rows: all training rows.
    `balanced` gives n / (C n_c) for single_label, as in scikit-learn, so that the mean weight of a row is 1; for other
    kinds the ratio of negative to positive rows. A label without rows has weight 1.
    """
    if not isinstance(setting, str):
        return setting
    if kind == "single_label":
        return [num_rows / (len(counts) * count) if count else 1.0 for count in counts]
    positive = counts[1:] if kind == "binary" else counts
    return [(num_rows - count) / count if 0 < count < num_rows else 1.0 for count in positive]

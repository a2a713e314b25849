"""Summed KTO losses of unpaired good and bad answers (Ethayarajh et al. 2024, arXiv:2402.01306, equation 7).

Documents end with their label (data/encoders/kto.py). With r = log p(answer) - log p_ref(answer), summed over the
answer's tokens, and beta, w+ and w- of the recipe:

    good answers   w+ (1 - sigmoid(beta (r - z)))
    bad answers    w- (1 - sigmoid(beta (z - r)))

z is the reference point of the reward: an estimate of the KL divergence from the reference model, the mean of r over
the prompts of the batch with the answers of other rows (data/index/unrelated.py), clamped at zero, without gradient.
trl computes it over each micro-batch. Here it is that of the global batch, computed before its first gradient, so that
neither accumulation nor the number of ranks changes a step.

T tokens of all concatenated documents, D documents.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tunesmith.configs.sections.objectives import Kto
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.losses.causal import CausalLoss, LossSums
from tunesmith.modeling.losses.forward_path import PACKED_AND_FUSED, ForwardPath


class KtoLoss(CausalLoss):
    """Loss module of KTO (arXiv:2402.01306) around a causal language model, with or without adapters.

    `score` returns the negative log-probabilities of the answers; those of the reference model are computed with it
    before training (training/reference.py). Other arguments as for CausalLoss.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Kto,
        *,
        compute_dtype: torch.dtype | None = None,
        neftune_alpha: float | None = None,
        kernels: Kernels | None = None,
        path: ForwardPath = PACKED_AND_FUSED,
    ):
        super().__init__(model, compute_dtype=compute_dtype, neftune_alpha=neftune_alpha, kernels=kernels, path=path)
        self.options = options

    def forward(
        self,
        tokens_T: Tensor,
        labels_T: Tensor,
        positions_T: Tensor,
        lengths: list[int],
        label_smoothing: float = 0.0,
        by_token: bool = False,
        reference_D: Tensor | None = None,
        unrelated_mean: Tensor | None = None,
    ) -> LossSums:
        """As CausalLoss, but the loss is summed over documents, and a hit is an answer whose reward is on the side of z
        that its label requires.

        reference: fp32 [D], log-probability of each answer under the reference model. unrelated_mean: fp32 scalar, z
        before clamping. num_supervised counts tokens. by_token: as for CausalLoss. ValueError without reference or
        unrelated_mean.
        """
        if by_token:
            return super().forward(tokens_T, labels_T, positions_T, lengths, by_token=True)
        if reference_D is None or unrelated_mean is None:
            raise ValueError("kto requires the reference log-probabilities and the mean over unrelated pairs")
        losses_D, counts_D = self.document_losses(tokens_T, labels_T, positions_T, lengths)
        stops_D = torch.tensor(lengths, device=tokens_T.device).cumsum(0)
        terms = kto_losses(self.options, -losses_D - reference_D, tokens_T[stops_D - 1] == 1, unrelated_mean)
        return LossSums(terms.loss.sum(), (terms.margin > 0).sum(), counts_D.sum())


class KtoTerms(NamedTuple):
    """Per document, fp32 [D]. loss: with gradient. margin: beta (r - z) if the answer is good, beta (z - r) if it is
    bad, without gradient."""

    loss: Tensor
    margin: Tensor


def kto_losses(options: Kto, ratio_D: Tensor, is_good_D: Tensor, unrelated_mean: Tensor) -> KtoTerms:
    """Return loss and margin of each document (Ethayarajh et al. 2024, arXiv:2402.01306, equation 7).

    ratio: fp32 [D], r of each document. is_good: bool [D], its label. unrelated_mean: scalar, z before clamping.
    """
    sign_D = torch.where(is_good_D, 1.0, -1.0).to(ratio_D)
    weight_D = torch.where(is_good_D, options.desirable_weight, options.undesirable_weight).to(ratio_D)
    margin_D = options.beta * sign_D * (ratio_D - unrelated_mean.detach().clamp(min=0))
    return KtoTerms(weight_D * (1 - torch.sigmoid(margin_D)), margin_D.detach())

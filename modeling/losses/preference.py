"""Summed preference losses of pairs of answers: DPO, IPO and ORPO.

Documents come in pairs, the chosen answer first (data/encoders/preference.py). With
r = log p(answer) - log p_ref(answer), summed over the answer's tokens, |y| their number, and b the recipe's beta:

    dpo    -log sigmoid(b (r+ - r-))                     Rafailov et al. 2023, arXiv:2305.18290
    ipo    (r+ / |y+| - r- / |y-| - 1 / (2 b))^2         Azar et al. 2023, arXiv:2310.12036, of token means, as in trl
    orpo   -log p(y+) / |y+| - b log sigmoid(log odds(y+) - log odds(y-)),  odds = p / (1 - p),  p = exp(log p(y) / |y|)
                                                         Hong et al. 2024, arXiv:2403.07691

T tokens of all concatenated documents, D documents, P pairs.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tunesmith.configs.sections.objectives import Preference
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.losses.causal import CausalLoss, LossSums
from tunesmith.modeling.losses.forward_path import PACKED_AND_FUSED, ForwardPath


class PreferenceLoss(CausalLoss):
    """Loss module of DPO, IPO or ORPO around a causal language model, with or without adapters.

    `score` returns the negative log-probabilities of the answers; those of the reference model are computed with it
    before training (training/reference.py). Other arguments as for CausalLoss.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Preference,
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
    ) -> LossSums:
        """As CausalLoss, but the loss is summed over pairs, and a hit is a pair with a positive margin.

        reference: fp32 [D], log-probability of each answer under the reference model; None for orpo. num_supervised
        counts tokens. by_token: as for CausalLoss.
        """
        if by_token:
            return super().forward(tokens_T, labels_T, positions_T, lengths, by_token=True)
        losses_D, counts_D = self.document_losses(tokens_T, labels_T, positions_T, lengths)
        loss_P, margin_P = pair_losses(self.options, -losses_D, counts_D, reference_D)
        return LossSums(loss_P.sum(), (margin_P > 0).sum(), counts_D.sum())


def pair_losses(
    options: Preference, log_probs_D: Tensor, counts_D: Tensor, reference_D: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return loss (with gradient) and margin (without) of each pair, fp32 [P] each.

    options.loss: dpo (arXiv:2305.18290), ipo (arXiv:2310.12036) or orpo (arXiv:2403.07691). log_probs: fp32 [D], summed
    over an answer's tokens, chosen and rejected alternating. counts: int64 [D], tokens of each answer. reference: fp32
    [D], None for orpo. margin: beta (r+ - r-) for dpo and ipo; for orpo, which has no reference, beta times the
    difference of mean log-probabilities. ValueError if dpo or ipo has no reference.
    """
    counts_D = counts_D.clamp(min=1)
    if options.loss == "orpo":
        mean_D = log_probs_D / counts_D
        better_P, worse_P = mean_D[0::2], mean_D[1::2]
        odds_P = (better_P - worse_P) - (_log1mexp(better_P) - _log1mexp(worse_P))
        return -better_P - options.beta * logsigmoid(odds_P), options.beta * (better_P - worse_P).detach()
    if reference_D is None:
        raise ValueError(f"{options.loss} requires the reference log-probabilities")
    ratio_D = log_probs_D - reference_D
    margin_P = options.beta * (ratio_D[0::2] - ratio_D[1::2])
    if options.loss == "dpo":
        return -logsigmoid(margin_P), margin_P.detach()
    mean_D = ratio_D / counts_D
    return (mean_D[0::2] - mean_D[1::2] - 1 / (2 * options.beta)) ** 2, margin_P.detach()


def _log1mexp(value: Tensor) -> Tensor:
    """log(1 - exp(value)) for value < 0, without cancellation (Maechler 2012, log1mexp); clamped near 0."""
    value = value.clamp(max=-1e-6)
    return torch.where(value > -0.6931472, torch.log(-torch.expm1(value)), torch.log1p(-torch.exp(value)))

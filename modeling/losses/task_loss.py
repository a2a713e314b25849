"""The loss that a plan's task is trained with, around its model."""

from collections.abc import Sequence

import torch
from torch import nn

from tunesmith.configs.plan import Plan
from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.parity import Parity
from tunesmith.modeling.loading.heads import labels_of
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.classification import ClassificationLoss, class_weights
from tunesmith.modeling.losses.preference import PreferenceLoss
from tunesmith.modeling.losses.sequence import SequenceLoss


def make_loss(
    plan: Plan,
    model: nn.Module,
    *,
    compute_dtype: torch.dtype | None = None,
    neftune_alpha: float | None = None,
    kernels: Kernels | None = None,
    compared: Sequence[Parity] = (),
) -> CausalLoss:
    """All as in CausalLoss; kernels are of use where logits over the vocabulary are made."""
    recipe = plan.recipe
    if (labels := labels_of(plan)) is not None:
        counts = plan.data.label_counts or []
        weights = class_weights(recipe.classification.class_weights, labels.kind, counts, plan.data.train.num_rows)
        return ClassificationLoss(model, labels, weights, compute_dtype=compute_dtype, neftune_alpha=neftune_alpha)
    if recipe.task == "seq2seq":
        return SequenceLoss(model, compute_dtype=compute_dtype)
    if recipe.task == "preference":
        loss: CausalLoss = PreferenceLoss(
            model, recipe.preference, compute_dtype=compute_dtype, neftune_alpha=neftune_alpha, kernels=kernels
        )
    else:
        loss = CausalLoss(
            model,
            compute_dtype=compute_dtype,
            neftune_alpha=neftune_alpha,
            kernels=kernels,
            z_loss=recipe.optimization.z_loss,
        )
    loss.compared = compared
    return loss

"""The loss that a plan's task is trained with, around its model."""

import torch
from torch import nn

from tunesmith.configs.plan import Plan
from tunesmith.modeling.causal_loss import CausalLoss
from tunesmith.modeling.classification_loss import ClassificationLoss, class_weights
from tunesmith.modeling.heads import labels_of
from tunesmith.modeling.preference_loss import PreferenceLoss
from tunesmith.modeling.sequence_loss import SequenceLoss


def make_loss(
    plan: Plan, model: nn.Module, *, compute_dtype: torch.dtype | None = None, neftune_alpha: float | None = None
) -> CausalLoss:
    """compute_dtype, neftune_alpha: as in CausalLoss."""
    recipe = plan.recipe
    if (labels := labels_of(plan)) is not None:
        counts = plan.data.label_counts or []
        weights = class_weights(recipe.classification.class_weights, labels.kind, counts, plan.data.train.num_rows)
        return ClassificationLoss(model, labels, weights, compute_dtype=compute_dtype, neftune_alpha=neftune_alpha)
    if recipe.task == "seq2seq":
        return SequenceLoss(model, compute_dtype=compute_dtype)
    if recipe.task == "preference":
        return PreferenceLoss(model, recipe.preference, compute_dtype=compute_dtype, neftune_alpha=neftune_alpha)
    return CausalLoss(model, compute_dtype=compute_dtype, neftune_alpha=neftune_alpha)

"""The loss that a plan's task is trained with, around its model: one line of a table for each task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tunesmith.configs.plan import Plan
from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.parity import Parity
from tunesmith.modeling.loading.heads import labels_of
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.classification import ClassificationLoss, class_weights
from tunesmith.modeling.losses.kto import KtoLoss
from tunesmith.modeling.losses.preference import PreferenceLoss
from tunesmith.modeling.losses.sequence import SequenceLoss


@dataclass(frozen=True)
class LossOptions:
    """What does not depend on the task; all as in CausalLoss."""

    compute_dtype: torch.dtype | None = None
    neftune_alpha: float | None = None
    kernels: Kernels | None = None


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
    loss = LOSSES[plan.recipe.task](plan, model, LossOptions(compute_dtype, neftune_alpha, kernels))
    loss.compared = compared
    return loss


def _causal(plan: Plan, model: nn.Module, options: LossOptions) -> CausalLoss:
    return CausalLoss(
        model,
        compute_dtype=options.compute_dtype,
        neftune_alpha=options.neftune_alpha,
        kernels=options.kernels,
        z_loss=plan.recipe.optimization.z_loss,
    )


def classification_loss(plan: Plan, model: nn.Module, options: LossOptions) -> ClassificationLoss:
    labels, data = labels_of(plan), plan.data
    assert labels is not None
    wanted = plan.recipe.classification.class_weights
    weights = class_weights(wanted, labels.kind, data.label_counts or [], data.train.num_rows)
    return ClassificationLoss(
        model, labels, weights, compute_dtype=options.compute_dtype, neftune_alpha=options.neftune_alpha
    )


def _sequence(plan: Plan, model: nn.Module, options: LossOptions) -> SequenceLoss:
    return SequenceLoss(model, compute_dtype=options.compute_dtype)


def _preference(plan: Plan, model: nn.Module, options: LossOptions) -> PreferenceLoss:
    return PreferenceLoss(
        model,
        plan.recipe.preference,
        compute_dtype=options.compute_dtype,
        neftune_alpha=options.neftune_alpha,
        kernels=options.kernels,
    )


def _kto(plan: Plan, model: nn.Module, options: LossOptions) -> KtoLoss:
    return KtoLoss(
        model,
        plan.recipe.kto,
        compute_dtype=options.compute_dtype,
        neftune_alpha=options.neftune_alpha,
        kernels=options.kernels,
    )


LOSSES: dict[str, Callable[[Plan, nn.Module, LossOptions], CausalLoss]] = {
    "chat": _causal,
    "completion": _causal,
    "text": _causal,
    "classification": classification_loss,
    "seq2seq": _sequence,
    "preference": _preference,
    "kto": _kto,
}

"""The loss module of a plan's task: a table with one entry per task."""

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
from tunesmith.modeling.losses.forward_path import PACKED_AND_FUSED, ForwardPath
from tunesmith.modeling.losses.kto import KtoLoss
from tunesmith.modeling.losses.preference import PreferenceLoss
from tunesmith.modeling.losses.sequence import SequenceLoss


@dataclass(frozen=True)
class LossOptions:
    """Options that do not depend on the task, as for CausalLoss."""

    compute_dtype: torch.dtype | None = None
    neftune_alpha: float | None = None
    kernels: Kernels | None = None
    path: ForwardPath = PACKED_AND_FUSED


def planned_path(plan: Plan) -> ForwardPath:
    """Return the forward path that the model proof of a plan found; without one, packed and fused."""
    proof, one_batch = plan.model.proof, plan.parallelism.zero_stage == 3
    if proof is None:
        return ForwardPath(one_batch=one_batch)
    fused = proof.loss == "fused"
    return ForwardPath(packed=proof.packing, fused=fused, padded=proof.padding, one_batch=one_batch)


def make_loss(
    plan: Plan,
    model: nn.Module,
    *,
    compute_dtype: torch.dtype | None = None,
    neftune_alpha: float | None = None,
    kernels: Kernels | None = None,
    compared: Sequence[Parity] = (),
) -> CausalLoss:
    """Return the loss module of the plan's task around the model.

    Options as for CausalLoss; kernels are only used by tasks with logits over the vocabulary.
    """
    loss = LOSSES[plan.recipe.task](plan, model, LossOptions(compute_dtype, neftune_alpha, kernels, planned_path(plan)))
    loss.compared = compared
    return loss


def _causal(plan: Plan, model: nn.Module, options: LossOptions) -> CausalLoss:
    return CausalLoss(
        model,
        compute_dtype=options.compute_dtype,
        neftune_alpha=options.neftune_alpha,
        kernels=options.kernels,
        z_loss=plan.recipe.optimization.z_loss,
        path=options.path,
    )


def classification_loss(plan: Plan, model: nn.Module, options: LossOptions) -> ClassificationLoss:
    """Return the loss module of a classification plan, with its labels and class weights."""
    labels, data = labels_of(plan), plan.data
    assert labels is not None
    setting = plan.recipe.classification.class_weights
    weights = class_weights(setting, labels.kind, data.label_counts or [], data.train.num_rows)
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
        path=options.path,
    )


def _kto(plan: Plan, model: nn.Module, options: LossOptions) -> KtoLoss:
    return KtoLoss(
        model,
        plan.recipe.kto,
        compute_dtype=options.compute_dtype,
        neftune_alpha=options.neftune_alpha,
        kernels=options.kernels,
        path=options.path,
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

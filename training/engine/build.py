"""Builds the training engine from the plan: base model, method, loss, engine."""

from collections.abc import Sequence
from pathlib import Path

import torch

from tunesmith.configs.plan import Plan
from tunesmith.configs.sections.method import Full, LastLayers
from tunesmith.kernels import weight_gradient
from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.parity import Parity
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.base import load_base
from tunesmith.modeling.loading.heads import labels_of
from tunesmith.modeling.loading.stream import stored_in_fp32
from tunesmith.modeling.losses.task_loss import make_loss
from tunesmith.modeling.parts import recompute_activations
from tunesmith.modeling.patching.fast import install_kernels
from tunesmith.modeling.precision import autocast_dtype, dtype_of
from tunesmith.progress import advance
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.host_activations import keep_activations_on_host
from tunesmith.training.engine.loss_scale import loss_scale_for
from tunesmith.training.engine.plain import PlainEngine
from tunesmith.training.engine.protocol import Engine
from tunesmith.training.optim.optimizer import update_operations


def build_engine(plan: Plan, ranks: Ranks) -> Engine:
    """Return the planned engine, with the recipe's method applied to the base model."""
    stage, device = plan.parallelism.zero_stage, plan.compute.device
    optimization = plan.recipe.optimization
    model = _model(plan, ranks)
    compute_dtype = None if _has_master_weights(plan) else autocast_dtype(plan.compute.precision)
    kernels, compared = _kernels(plan, model, compute_dtype, ranks)
    loss_module = make_loss(
        plan,
        model,
        kernels=kernels,
        compared=compared,
        compute_dtype=compute_dtype,
        neftune_alpha=optimization.neftune_alpha,
    )
    if optimization.offload_activations:
        keep_activations_on_host(loss_module)
    _count_blocks(model)
    parameters = trained_parameters(model)
    loss_scale = loss_scale_for(plan.compute.precision)
    if stage == 0:
        return PlainEngine(
            loss_module, parameters, optimization, ranks, device=device, kernels=kernels, loss_scale=loss_scale
        )
    from tunesmith.training.engine.deepspeed import DeepSpeedEngine

    engine = DeepSpeedEngine(
        *(loss_module, parameters, optimization, ranks),
        device=device,
        parallelism=plan.parallelism,
        loss_scale=loss_scale,
    )
    if _has_master_weights(plan):
        engine.set_master_weights(stored_in_fp32(Path(plan.model.directory), model))
    return engine


def _count_blocks(model: torch.nn.Module) -> None:
    """Count every pass through a block of the model as progress, in training, scoring and generation."""
    for blocks in model.modules():
        if isinstance(blocks, torch.nn.ModuleList):
            for block in blocks:
                block.register_forward_hook(lambda *_: advance())


def _trains_base(plan: Plan) -> bool:
    return isinstance(plan.recipe.method, Full | LastLayers)


def _has_master_weights(plan: Plan) -> bool:
    """Whether the engine keeps fp32 master weights apart from the model's bf16 weights.

    DeepSpeed does, sharded; the plain engine keeps trained weights in fp32 and autocasts. With adapters the base model
    is bf16 in both engines, and the adapters are fp32. In fp16 trained weights are fp32 in both engines: they and their
    updates are outside its range.
    """
    return plan.compute.precision == "bf16" and _trains_base(plan) and plan.parallelism.zero_stage > 0


def _model(plan: Plan, ranks: Ranks) -> torch.nn.Module:
    """The base model with the method applied."""
    low = _has_master_weights(plan) or not _trains_base(plan)
    model = load_base(
        Path(plan.model.directory),
        plan.recipe.method,
        dtype=dtype_of(plan.compute.precision) if low else torch.float32,
        device=plan.compute.device,
        place=_place(plan, ranks),
        task=plan.recipe.task,
        labels=labels_of(plan),
    )
    if plan.compute.gradient_checkpointing:
        recompute_activations(model)
    return apply_method(
        model,
        plan.recipe.method,
        dropout=plan.recipe.optimization.dropout,
        seed=plan.recipe.seed,
        in_fp32=not _has_master_weights(plan),
        start_from=Path(plan.model.adapter) if plan.model.adapter else None,
        new_rows=plan.model.new_rows,
    )


def _kernels(
    plan: Plan, model: torch.nn.Module, compute_dtype: torch.dtype | None, ranks: Ranks
) -> tuple[Kernels, Sequence[Parity]]:
    """Install the kernels in the model. Returns them and their parity with the references.

    Only causal models have kernels. Under ZeRO-3 a module's weights are gathered only during its own forward, so no
    kernel may span modules.
    """
    stage, causal = plan.parallelism.zero_stage, plan.recipe.task_facts.is_causal
    kernels = Kernels(plan.recipe.kernels if causal else "off")
    if stage > 0:  # DeepSpeed collects gradients by autograd hooks
        for operation in weight_gradient.OPERATIONS:
            kernels.switch_off(operation)
    if not causal:
        return kernels, []
    compared = install_kernels(
        model,
        kernels,
        device=plan.compute.device,
        compute_dtype=compute_dtype,
        agree=ranks.any,
        sharded=stage == 3,
        also=update_operations(plan.recipe.optimization) if stage == 0 else (),
    )
    return kernels, compared


def _place(plan: Plan, ranks: Ranks):
    if plan.parallelism.zero_stage < 3:
        return None
    from tunesmith.training.engine.zero_loading import sharder

    assert plan.parallelism.deepspeed is not None
    return sharder(plan.parallelism.deepspeed, plan.compute.device, ranks)

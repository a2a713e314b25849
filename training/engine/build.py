"""From the plan to the engine that trains: base model, method, loss, engine."""

from pathlib import Path

import torch

from tunesmith.configs.plan import Plan
from tunesmith.configs.recipe import Full, LastLayers
from tunesmith.kernels import weight_gradient
from tunesmith.kernels.dispatch import Kernels
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.base import load_base
from tunesmith.modeling.loading.heads import labels_of
from tunesmith.modeling.loading.stream import stored_in_fp32
from tunesmith.modeling.losses.task_loss import make_loss
from tunesmith.modeling.parts import recompute_activations
from tunesmith.modeling.patching.fast import fit_kernels
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.plain import PlainEngine
from tunesmith.training.engine.protocol import Engine
from tunesmith.training.optim.optimizer import update_operations

CAUSAL_TASKS = ("chat", "completion", "text", "preference")


def build_engine(plan: Plan, ranks: Ranks) -> Engine:
    """The base model with the recipe's method applied, inside the engine that the plan chose."""
    stage, device = plan.parallelism.zero_stage, plan.compute.device
    bf16 = plan.compute.precision == "bf16"
    trains_base = isinstance(plan.recipe.method, Full | LastLayers)
    # The plain engine keeps trained weights in fp32 and casts them for the product; DeepSpeed keeps the model in bf16
    # and masters in fp32, divided. Under adapters the base is bf16 in both, and the adapters are fp32.
    has_masters = bf16 and trains_base and stage > 0
    model = load_base(
        Path(plan.model.directory),
        plan.recipe.method,
        dtype=torch.bfloat16 if has_masters or (bf16 and not trains_base) else torch.float32,
        device=device,
        place=_place(plan, ranks),
        task=plan.recipe.task,
        labels=labels_of(plan),
    )
    if plan.compute.gradient_checkpointing:
        recompute_activations(model)
    wanted = plan.recipe.optimization
    model = apply_method(
        model,
        plan.recipe.method,
        dropout=wanted.dropout,
        seed=plan.recipe.seed,
        in_fp32=not has_masters,
        start_from=Path(plan.model.adapter) if plan.model.adapter else None,
    )
    compute_dtype = torch.bfloat16 if bf16 and not has_masters else None
    # Kernels know causal models. Under ZeRO-3 a layer's weights are there only while its own forward runs: nothing may
    # reach over layers, and only the head's kernel is used.
    causal = plan.recipe.task in CAUSAL_TASKS
    kernels = Kernels(plan.recipe.kernels if causal else "off")
    if stage > 0:  # DeepSpeed collects gradients as autograd hands them over
        for operation in weight_gradient.OPERATIONS:
            kernels.switch_off(operation)
    compared = (
        fit_kernels(
            model,
            kernels,
            device=device,
            compute_dtype=compute_dtype,
            agree=ranks.any,
            blocks=stage < 3,
            also=update_operations(wanted) if stage == 0 else (),
        )
        if causal
        else []
    )
    loss_module = make_loss(
        plan,
        model,
        kernels=kernels,
        compared=compared,
        compute_dtype=compute_dtype,
        neftune_alpha=wanted.neftune_alpha,
    )
    parameters = trained_parameters(model)
    if stage == 0:
        return PlainEngine(loss_module, parameters, wanted, ranks, device=device, kernels=kernels)
    from tunesmith.training.engine.deepspeed import DeepSpeedEngine

    engine = DeepSpeedEngine(loss_module, parameters, wanted, ranks, device=device, parallelism=plan.parallelism)
    if has_masters:
        engine.take_masters(stored_in_fp32(Path(plan.model.directory), model))
    return engine


def _place(plan: Plan, ranks: Ranks):
    if plan.parallelism.zero_stage < 3:
        return None
    from tunesmith.training.engine.zero_loading import divider

    assert plan.parallelism.deepspeed is not None
    return divider(plan.parallelism.deepspeed, plan.compute.device, ranks)

"""What the plan says of adapters and of a mixture of experts, and what it refuses."""

from tunesmith.configs.plan import AdapterTarget, Choice, ModelFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Lora, QLora
from tunesmith.configs.tasks import listed
from tunesmith.errors import InputError
from tunesmith.launcher.planning.memory import BF16_BYTES, nf4_bytes
from tunesmith.modeling.base_model.experts import MIN_SHARE_IN_4_BITS
from tunesmith.report.wording import count, percent

MOE_TASKS = listed(lambda task: task.is_causal)
"""Tasks whose models may be mixtures of experts."""


def adapter_choices(recipe: Recipe, model: ModelFacts) -> list[Choice]:
    """What gets an adapter, with sizes; empty without adapters."""
    if not isinstance(recipe.method, Lora) or not model.adapters:
        return []
    frozen = "" if model.num_experts is None or _trains_router(model) else "; routers are frozen"
    return [
        Choice(
            key="adapters",
            value=sum(target.count for target in model.adapters),
            reason=f"rank {recipe.method.lora_rank} on {', '.join(map(_described, model.adapters))}{frozen}",
        )
    ]


def expert_choices(model: ModelFacts) -> list[Choice]:
    """Active and total weights of a mixture of experts; empty for other models."""
    if model.num_experts is None:
        return []
    chosen = f"{model.num_experts_per_token or 'an unknown number'} of {model.num_experts} experts per token and layer"
    if model.num_active_params is None:
        return [Choice(key="active weights", value="unknown", reason=chosen)]
    share = percent(model.num_active_params / model.num_params)
    return [Choice(key="active weights", value=model.num_active_params, reason=f"{share} of all: {chosen}")]


def router_loss_choices(recipe: Recipe, model: ModelFacts) -> list[Choice]:
    """Weight and scope of the router loss, with its cost; empty for models without experts."""
    if model.num_experts is None:
        return []
    options = recipe.optimization.router_loss
    coefficient, source = options.coefficient, "set in the recipe"
    if coefficient is None:
        coefficient, source = model.router_loss_coefficient or 0.0, "the model configuration's router_aux_loss_coef"
    if not coefficient:
        return [Choice(key="router_loss", value=0.0, reason=f"{source}; load and entropy are recorded")]
    if options.scope == "micro_batch":
        scope = "shares of the experts from each micro-batch, summed over processes"
    else:
        passes = 4 if recipe.optimization.gradient_checkpointing else 3
        scope = (
            "shares of the experts from the whole step, by one more forward pass without gradient: about "
            f"{percent(1 / passes)} more time per step"
        )
    return [Choice(key="router_loss", value=coefficient, reason=f"{source}; {scope}")]


def four_bit_choices(recipe: Recipe, model: ModelFacts) -> list[Choice]:
    """Share of the expert weights in 4 bits, and their memory; empty without QLoRA or experts."""
    if not isinstance(recipe.method, QLora) or model.num_expert_params is None:
        return []
    size, known = nf4_bytes(recipe.method, model.num_expert_params), _share_in_4_bits(model)
    reason = (
        f"{percent(size / (BF16_BYTES * model.num_expert_params))} of their size in 16 bits; the experts that a batch "
        f"activates are dequantized one by one; at least {percent(MIN_SHARE_IN_4_BITS)} is required"
    )
    value = "measured when the model is loaded" if known is None else percent(known)
    return [Choice(key="experts in 4 bits", value=value, reason=reason, num_bytes=size)]


def require_quantizable(recipe: Recipe, model: ModelFacts) -> None:
    """Raise InputError for QLoRA if less than 95% of the expert weights would be in 4 bits: transformers computes this
    family's experts in a forward of their own. Where this is unknown, the worker measures the share."""
    in_4_bits = _share_in_4_bits(model)
    if not isinstance(recipe.method, QLora) or in_4_bits is None or in_4_bits >= MIN_SHARE_IN_4_BITS:
        return
    share = percent((model.num_expert_params or 0) / model.num_params)
    raise InputError(
        f"experts of {model.model_type} cannot be quantized to 4 bits: {share} of the model's weights would stay in "
        "16 bits",
        where="key method.kind: qlora",
        remedy="use method.kind: lora; parallelism.zero_stage: 3 shards the weights over the processes",
    )


def require_routers(recipe: Recipe, model: ModelFacts) -> None:
    """Raise InputError if the recipe sets a router loss for a model without routers, which would ignore it."""
    if model.num_experts is None and recipe.optimization.router_loss.coefficient:
        raise InputError(
            f"the model ({model.model_type}) has no experts, and so no router loss",
            where="key optimization.router_loss.coefficient",
            remedy=f"remove the key, or choose a mixture-of-experts model ({MOE_TASKS})",
        )


def _share_in_4_bits(model: ModelFacts) -> float | None:
    """Share of the expert weights that QLoRA holds in 4 bits; None if it is unknown, or there are none."""
    return None if model.experts_quantizable is None else float(model.experts_quantizable)


def _described(target: AdapterTarget) -> str:
    return f"{count(target.count)} {target.name} ({' x '.join(map(str, target.shape))})"


def _trains_router(model: ModelFacts) -> bool:
    return any(target.name in ("gate", "router") for target in model.adapters)

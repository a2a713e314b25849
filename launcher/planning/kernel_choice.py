"""Which kernels a run uses, and why not others, for the plan. The worker decides by the same table
(kernels/resources.py), and disables a kernel that fails its check."""

from tunesmith.configs.plan import Choice
from tunesmith.configs.recipe import Recipe
from tunesmith.kernels import resources

ONE_MODULE = ("linear_cross_entropy", "packed_attention", "rms_norm", "layer_norm", "rope", "rope_packed", "swiglu")
ONE_MODULE += ("swiglu_packed", "geglu")
"""Operations that read the weights of one module at most: ZeRO-3 gathers weights module by module."""


def kernel_choice(recipe: Recipe, zero_stage: int, capability: resources.Capability | None, has_triton: bool) -> Choice:
    """The `kernels` line of the plan. capability: of the GPU; None on a CPU."""
    if recipe.kernels == "off":
        return Choice(key="kernels", value="off", reason="set in the recipe: plain PyTorch")
    if not recipe.task_facts.is_causal:
        return Choice(key="kernels", value="off", reason=f"task {recipe.task} uses plain PyTorch")
    reasons = ["compared with plain PyTorch before the first step"]
    value = "auto" if recipe.kernels == "auto" else ", ".join(recipe.kernels)
    if recipe.kernels != "auto":
        reasons.insert(0, "set in the recipe")
    if zero_stage == 3:
        used = [name for name in ONE_MODULE if recipe.kernels == "auto" or name in recipe.kernels]
        value = ", ".join(used) or "off"
        reasons.insert(0, "ZeRO-3 gathers weights module by module: kernels that read one module's weights")
    if capability is not None and not has_triton:
        reasons.append("Triton is not installed: plain PyTorch instead of its kernels")
    elif capability is not None:
        reasons += [
            f"plain PyTorch for {', '.join(operations)}: {reason}"
            for reason, operations in _misfits(recipe, capability)
        ]
    return Choice(key="kernels", value=value, reason="; ".join(reasons))


def _misfits(recipe: Recipe, capability: resources.Capability) -> list[tuple[str, list[str]]]:
    """Reasons, each with the operations that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for operation, reason in resources.misfits(capability).items():
        if recipe.kernels == "auto" or operation in recipe.kernels:
            by_reason.setdefault(reason, []).append(operation)
    return list(by_reason.items())

"""What a run promises about resuming, and how attention over packed documents is computed: both depend on the device.

That of attention is decided again where it runs (kernels/varlen_attention.py, with torch's tensors); a test compares.
"""

from tunesmith.configs.plan import Choice, ModelFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.kernels.resources import FLASH_CAPABILITY, FLASH_LARGEST_HEAD


def unsupported_reason(precision: str, head_size: int | None, capability: tuple[int, int]) -> str | None:
    """Return why a GPU computes attention document by document; None if one launch per layer computes all.

    capability: of the GPU. head_size: None: unknown.
    """
    if precision == "fp32":
        return "flash attention computes in fp16 or bf16"
    if capability < FLASH_CAPABILITY:
        return f"flash attention needs capability 8.0, this GPU has {'.'.join(map(str, capability))}"
    if head_size is None or head_size > FLASH_LARGEST_HEAD or head_size % 8:
        known = "an unknown size" if head_size is None else f"{head_size} values"
        limits = f"heads of up to {FLASH_LARGEST_HEAD} values, a multiple of 8"
        return f"flash attention needs {limits}; this model's have {known}"
    return None


def choose_determinism(
    recipe: Recipe, model: ModelFacts, precision: str, capability: tuple[int, int] | None
) -> tuple[str, list[Choice]]:
    """Return `compute.deterministic` and the choices about attention and determinism.

    capability: of the GPU; None on a CPU.
    """
    causal = recipe.task_facts.is_causal
    if capability is None:
        resolved, why = "warn", "on a CPU with the same number of threads a resumed run is bit-identical"
        reason = None
    else:
        reason = unsupported_reason(precision, model.head_size, capability) if causal else "not a causal model"
        resolved = "warn" if reason else "strict"
        why = "every operation in use has a deterministic form: a resumed run is bit-identical"
        if reason:
            why = "attention document by document has no deterministic backward pass: a resumed run agrees to rounding"
    if recipe.deterministic != "auto":
        resolved, why = recipe.deterministic, "set in the recipe"
        why += "; fails at the first operation without a deterministic form" if resolved == "strict" else ""
    choices = [Choice(key="deterministic", value=resolved, reason=why)]
    if causal and capability is not None:
        value = "document by document" if reason else "one launch per layer"
        choices.insert(0, Choice(key="attention", value=value, reason=reason or "variable-length flash attention"))
    return resolved, choices

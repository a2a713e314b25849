"""The plan's line on a base model whose published weights are quantized."""

from tunesmith.configs.plan import Choice, ModelFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Lora, QLora


def base_weights_choice(recipe: Recipe, model: ModelFacts, precision: str, zero_stage: int) -> list[Choice]:
    """Format of the published weights, and what becomes of them while loading; empty if they are not quantized.

    precision: of the run. Weights that are trained themselves are kept in fp32, except in bf16 under ZeRO.
    """
    if model.quantized is None:
        return []
    kept = precision if isinstance(recipe.method, Lora) or (precision == "bf16" and zero_stage > 0) else "fp32"
    if model.quantized.kind == "bitsandbytes":
        reason = "kept in 4 bits as published, bit for bit; method.double_quantization has no effect"
    else:
        reason = f"dequantized to {kept} while loading"
        if isinstance(recipe.method, QLora):
            reason += ", then quantized to NF4"
    return [Choice(key="base weights", value=model.quantized.name, reason=reason)]

"""Memory footprint of one rank: an estimate from the shape of the model, before any weight is loaded.

Legend: h hidden_size, i feed-forward width, L blocks, b bytes per activation (4 in fp32, 2 in bf16), P total weights,
T trained weights, N tokens of a forward pass.

    weights       4 T + (P - T) * (b if the base model is completely frozen, otherwise 4)
    gradients     4 T
    optimizer     8 T                       two moments of AdamW in fp32
    activations   N * b * (9 h + 4 i)       for each block that a gradient passes, kept from forward to backward:
                                            4 i for gate, up, their activation and their product, the rest for
                                            norms, q, k, v and the attention output
                  N * b * (6 h + 2 i)       if blocks with adapters recompute what is cheap (kernels.lora_block:
                                            fp32 on a CPU, a LLaMA-like model, adapters without dropout everywhere)
                  with checkpointing: N * b * h per block, and (9 h + 4 i) for the block that is being recomputed
    head          four chunks of logits of 64 MiB, and the hidden states with their gradient
    process       the libraries

Measured on SmolLM2-135M (LoRA, fp32, packed, CPU; peak resident memory with 506 and 2,048 tokens): 4.4 h + 4 i. As
many key heads as query heads add 1.3 h, trained norms 2 h; the rest is margin: the estimates were 4% and 17% too high.
With recomputing adapter blocks: 1.82, 2.41 and 2.95 GB at 500, 1,000 and 1,950 tokens.
i is not in the model facts of the plan; it follows from the number of weights of a block, at least 2 h^2 + 3 h i.
"""

from dataclasses import dataclass

from tunesmith.configs.plan import ModelFacts
from tunesmith.configs.recipe import LastLayers, Lora, QLora, Recipe

PROCESS_BYTES = 650 << 20
"""torch, transformers and peft loaded, before any weight: measured on Linux with the CPU build, rounded up."""
HEAD_BYTES = 4 * (64 << 20)
ADAMW_BYTES = 8
FP32_BYTES = 4
BF16_BYTES = 2


@dataclass(frozen=True)
class Footprint:
    """Memory of one rank in bytes: independent of the batch, and per token of the forward pass."""

    weights: int
    gradients: int
    optimizer: int
    process: int
    token: int
    """Per token, with all activations kept."""
    token_checkpointed: int
    """Per token, with activation checkpointing."""

    @property
    def fixed(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.process

    def activations(self, num_tokens: int, checkpointing: bool) -> int:
        return num_tokens * (self.token_checkpointed if checkpointing else self.token)

    def peak(self, num_tokens: int, checkpointing: bool) -> int:
        return self.fixed + self.activations(num_tokens, checkpointing)


LLAMA_LIKE = {"llama", "mistral", "qwen2", "qwen3"}
"""Model types whose blocks have a fast implementation for adapters (modeling/patching/adapted_block.py)."""


def footprint(recipe: Recipe, model: ModelFacts, bf16: bool, device: str = "cuda") -> Footprint:
    """Estimate the footprint of a recipe on a model (formula: see the module docstring)."""
    hidden, trained = model.hidden_size, model.num_trained_params
    frozen = max(0, model.num_params - trained)
    element = BF16_BYTES if bf16 else FP32_BYTES
    wholly_frozen = isinstance(recipe.method, Lora)
    blocks = model.num_layers
    if isinstance(recipe.method, LastLayers):
        blocks = min(blocks, recipe.method.num_layers)
    again = kept = 9 * hidden + 4 * feed_forward_width(model)
    if device == "cpu" and not bf16 and model.model_type in LLAMA_LIKE and _has_fast_blocks(recipe):
        kept = 6 * hidden + 2 * feed_forward_width(model)
    if isinstance(recipe.method, Lora) and recipe.method.lora_dropout > 0:
        dropped = 6 * hidden + feed_forward_width(model)  # each adapter keeps its input after dropout
        kept, again = kept + dropped, again + dropped
    ends = 4 * hidden * FP32_BYTES
    if isinstance(recipe.method, QLora):
        base = _nf4_bytes(recipe.method, model, element)
    else:
        base = frozen * (element if wholly_frozen else FP32_BYTES)
    return Footprint(
        weights=trained * (FP32_BYTES + (BF16_BYTES if bf16 else 0)) + base,
        gradients=trained * FP32_BYTES,
        optimizer=trained * ADAMW_BYTES,
        process=PROCESS_BYTES + HEAD_BYTES,
        token=blocks * kept * element + ends,
        token_checkpointed=(blocks * hidden + again) * element + ends,
    )


def _has_fast_blocks(recipe: Recipe) -> bool:
    """The same decision as in training/engine/build.py and modeling/patching/adapted_block.py."""
    method, kernels = recipe.method, recipe.kernels
    if not recipe.task_facts.is_causal or recipe.parallelism.zero_stage == 3:
        return False
    if (
        not isinstance(method, Lora)
        or method.lora_dropout > 0
        or method.use_dora
        or method.target_modules != "all-linear"
    ):
        return False
    return kernels == "auto" or {"norm_lora_linears", "gated_lora_linear"} <= set(kernels)


def _nf4_bytes(method: QLora, model: ModelFacts, element: int) -> int:
    """Bytes of the block matrices in 4 bits with their scales, of two dequantized matrices (gate and up, for blocks
    that recompute), and of embeddings and head."""
    kept = model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    packed = max(0, model.num_params - kept)
    bits = 4 + (8 / 64 + 32 / (64 * 256) if method.double_quantization else 32 / 64)
    return round(packed * bits / 8) + element * (kept + 2 * model.hidden_size * feed_forward_width(model))


def feed_forward_width(model: ModelFacts) -> int:
    """i: the maximum feed-forward width of a LLaMA block with this number of weights per block."""
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    block = max(0, model.num_params - embeddings) / max(1, model.num_layers)
    width = (block - 2 * model.hidden_size**2) / (3 * model.hidden_size)
    return max(model.hidden_size, round(width))

"""Memory footprint of one rank: an estimate from the shape of the model, before any weight is loaded.

Legend: h hidden_size, i feed-forward width, k width of keys, L blocks, b bytes per activation (4 in fp32, 2 in bf16), P
total weights, T trained weights, N tokens of a forward pass, V vocabulary.

    weights       4 T + (P - T) * (b if the base model is completely frozen, otherwise 4); 2 T more in bf16
    gradients     4 T
    optimizer     8 T                       two moments of AdamW in fp32; with 8-bit moments 2 T and their scales
    activations   for each block that a gradient passes, kept from forward to backward (below)
                  with checkpointing: N * b * h per block, and the activations of the block that is being recomputed
                  offloaded: those of one block; the rest is in CPU memory
    head          chunks of logits, the hidden states with their gradient; on a GPU 4 V h more if it is trained: its
                  gradient exists twice while it is accumulated
    process       the libraries; on a GPU the CUDA context, NCCL's buffers and those of the update

Activations of a block on a CPU:

    N * b * (9 h + 4 i)                     4 i for gate, up, their activation and their product, the rest for norms, q,
                                            k, v and the attention output
    N * b * (6.5 h + 4 i)                   LLaMA-like blocks whose base model is trained
    N * b * (6 h + 2 i)                     if blocks with adapters recompute what is cheap (kernels.lora_block: a
                                            LLaMA-like model, adapters without dropout everywhere)

While the gradient of a block is computed, 9 h + 4 i values per token exist in addition. The head takes a chunk of
logits, and if it is trained twice its gradient. Fitted to SmolLM2-135M in fp32 (benchmarks/plan.py).

On a GPU: what autograd saves per token and LLaMA-like block, counted on tiny models with the GPU's kernels in Triton's
interpreter (tests/launcher/planning/test_gpu_memory.py); nothing has been measured on a GPU:

    6 h + 2 k + 3 i                         adapters, or a trained base model under ZeRO in bf16
    10 h + 2 k + 3 i                        adapters under ZeRO-3, as peft computes them
    11 h + 2 k + 3 i                        a trained base model in bf16 without ZeRO: the residual stream is in fp32
    7 h + 2 k + 3 i                         fp32: attention by document copies its output
    16 h + 6 k + 7 i                        DoRA
    5 h + i more                            kernels: off, or not all
    h + k more                              norms of queries and keys (Qwen 3)

Other models are estimated as on a CPU. While a block's gradient is computed, 3 i + 6 h and fp32 sums of flash attention
(4 h bytes) exist once in addition.
i and k are unknown in plans of earlier versions and of models that do not name them: k is then h, and i follows from
the number of weights of a block, at least 2 h^2 + 3 h i.
"""

from dataclasses import dataclass

from tunesmith.configs.plan import ModelFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import LastLayers, Lora, QLora

PROCESS_BYTES = 650 << 20
"""torch, transformers and peft loaded, before any weight: measured on Linux with the CPU build, rounded up."""
HEAD_BYTES = 64 << 20
"""A chunk of logits on a CPU, as in kernels/linear_cross_entropy.py."""
CUDA_BYTES = 768 << 20
"""CUDA context, code of torch, cuBLAS and Triton on the device, and cuBLAS's workspace. Not measured."""
NCCL_BYTES = 1536 << 20
"""Buffers of NCCL's channels in a process of several; 1 to 2 GB according to public reports. Not measured."""
CUDA_CHUNK_BYTES = 512 << 20
"""A chunk of logits on a GPU, as in kernels/linear_cross_entropy.py; a test compares them."""
UPDATE_BYTES = (64 << 20) + (32 << 20)
"""Buffers of gradients: of a reduction (training/engine/plain.py) and of an update (training/optim/flat_adamw.py)."""
ADAMW_BYTES = 8
"""The two moments of a weight in fp32, as checkpoints hold them."""
MOMENT_BYTES = {"adamw": ADAMW_BYTES, "adamw_8bit": 2 + 2 * 4 / 256, "paged_adamw_8bit": 2 + 2 * 4 / 256}
"""The two moments of a weight in memory; in 8 bits 256 values share an fp32 scale."""
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
    host_token: int = 0
    """Per token in CPU memory, with offloaded activations."""
    host_token_checkpointed: int = 0
    """The same, with activation checkpointing."""
    gathered: int = 0
    """Whole weights and gradients that ZeRO-3 gathers for use, and their buffers."""
    host: int = 0
    """State in CPU memory that a GPU uses: offloaded weights, gradients, moments and master weights."""

    @property
    def fixed(self) -> int:
        return self.weights + self.gathered + self.gradients + self.optimizer + self.process

    @property
    def model_states(self) -> int:
        """Weights, gradients, moments and master weights: what DeepSpeed's estimators count."""
        return self.weights + self.gradients + self.optimizer

    def activations(self, num_tokens: int, checkpointing: bool) -> int:
        return num_tokens * (self.token_checkpointed if checkpointing else self.token)

    def activations_on_host(self, num_tokens: int, checkpointing: bool) -> int:
        return num_tokens * (self.host_token_checkpointed if checkpointing else self.host_token)

    def peak(self, num_tokens: int, checkpointing: bool) -> int:
        return self.fixed + self.activations(num_tokens, checkpointing)


LLAMA_LIKE = {"llama", "mistral", "qwen2", "qwen3"}
"""Model types whose blocks have a fast implementation for adapters (modeling/patching/adapted_block.py)."""


def footprint(recipe: Recipe, model: ModelFacts, bf16: bool, device: str = "cuda", world_size: int = 1) -> Footprint:
    """Estimate the footprint of a recipe on a model (formula: see the module docstring)."""
    hidden, trained = model.hidden_size, model.num_trained_params
    frozen = max(0, model.num_params - trained)
    element = BF16_BYTES if bf16 else FP32_BYTES
    wholly_frozen = isinstance(recipe.method, Lora)
    blocks = model.num_layers
    if isinstance(recipe.method, LastLayers):
        blocks = min(blocks, recipe.method.num_layers)
    kept, again = _kept_values(recipe, model, bf16, device)
    residual = hidden * (2 if device == "cuda" and _has_fp32_residual(recipe, bf16) else 1)
    ends = 4 * hidden * FP32_BYTES
    if device == "cpu":
        ends += again * element
    else:
        ends += (3 * feed_forward_width(model) + 6 * hidden) * element + hidden * FP32_BYTES
    if isinstance(recipe.method, QLora):
        base = _nf4_bytes(recipe.method, model, element)
    else:
        base = frozen * (element if wholly_frozen else FP32_BYTES)
    on_device = 1 if recipe.optimization.offload_activations else blocks
    on_host = blocks - on_device
    return Footprint(
        weights=trained * (FP32_BYTES + (BF16_BYTES if bf16 else 0)) + base + head_copy_bytes(recipe, model, element),
        gradients=trained * FP32_BYTES,
        optimizer=round(trained * MOMENT_BYTES[recipe.optimization.optimizer]),
        process=_process_bytes(recipe, model, device, world_size),
        token=on_device * kept * element + ends,
        token_checkpointed=on_device * residual * element + (again * element if device == "cuda" else 0) + ends,
        host_token=on_host * kept * element,
        host_token_checkpointed=on_host * residual * element,
    )


def _kept_values(recipe: Recipe, model: ModelFacts, bf16: bool, device: str) -> tuple[int, int]:
    """Values per token that a block keeps for its backward pass, and those of a block that is being recomputed."""
    hidden, width = model.hidden_size, feed_forward_width(model)
    again = kept = 9 * hidden + 4 * width
    if device == "cuda" and model.model_type in LLAMA_LIKE and recipe.task_facts.is_causal:
        again = kept = _kept_on_gpu(recipe, model, bf16)
    elif device == "cpu" and model.model_type in LLAMA_LIKE and _has_fast_blocks(recipe):
        kept = 6 * hidden + 2 * width
    elif device == "cpu" and model.model_type in LLAMA_LIKE and not isinstance(recipe.method, Lora):
        kept = (13 * hidden) // 2 + 4 * width
    if isinstance(recipe.method, Lora) and recipe.method.lora_dropout > 0:
        dropped = 6 * hidden + width  # each adapter keeps its input after dropout
        kept, again = kept + dropped, again + dropped
    return kept, again


def _kept_on_gpu(recipe: Recipe, model: ModelFacts, bf16: bool) -> int:
    hidden, width = model.hidden_size, feed_forward_width(model)
    keys = model.key_value_size or hidden
    if isinstance(recipe.method, Lora) and recipe.method.use_dora:
        values = 16 * hidden + 6 * keys + 7 * width
    else:
        own = 6
        if not bf16:
            own = 7
        elif _has_fp32_residual(recipe, bf16):
            own = 11
        if isinstance(recipe.method, Lora) and recipe.parallelism.zero_stage == 3:
            own += 4
        values = own * hidden + 2 * keys + 3 * width
    if recipe.kernels != "auto" and not set(recipe.kernels) >= {"rms_norm", "add_rms_norm", "swiglu", "lora_linear"}:
        values += 5 * hidden + width
    return values + (hidden + keys if model.model_type == "qwen3" else 0)


def _has_fp32_residual(recipe: Recipe, bf16: bool) -> bool:
    """Whether the residual stream is in fp32 although the products are in bf16 (training/engine/build.py)."""
    return bf16 and not isinstance(recipe.method, Lora) and recipe.parallelism.zero_stage in ("auto", 0)


def _process_bytes(recipe: Recipe, model: ModelFacts, device: str, world_size: int) -> int:
    """Memory that depends on neither batch nor sharding."""
    if device == "cpu":
        trained = 2 * FP32_BYTES * model.vocab_size * model.hidden_size if _trains_head(recipe, model) else 0
        return PROCESS_BYTES + HEAD_BYTES + trained
    head = CUDA_CHUNK_BYTES
    if _trains_head(recipe, model):
        head += FP32_BYTES * model.vocab_size * model.hidden_size
    return CUDA_BYTES + UPDATE_BYTES + head + (NCCL_BYTES if world_size > 1 else 0)


def _trains_head(recipe: Recipe, model: ModelFacts) -> bool:
    if not recipe.task_facts.is_causal or isinstance(recipe.method, Lora):
        return False
    if isinstance(recipe.method, LastLayers):
        return not model.tied_embeddings if recipe.method.train_head is None else recipe.method.train_head
    return True


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
    """Bytes of the block matrices, experts included, in 4 bits with their scales, of two dequantized matrices (gate and
    up, for blocks that recompute; of experts, one is dequantized at a time), and of embeddings and head."""
    packed = _num_packed(model)
    kept = model.num_params - packed
    return nf4_bytes(method, packed) + element * kept + _dequantized_bytes(model, element)


def _num_packed(model: ModelFacts) -> int:
    """Number of weights that QLoRA holds in 4 bits: all but embeddings and head."""
    kept = model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    return max(0, model.num_params - kept)


def _dequantized_bytes(model: ModelFacts, element: int) -> int:
    return element * 2 * model.hidden_size * feed_forward_width(model)


def whole_bytes(recipe: Recipe, model: ModelFacts, element: int) -> int:
    """Bytes of frozen weights that every process holds whole under ZeRO-3, which shards parameters only: scales of
    weights in 4 bits, dequantized matrices, and the copy of the head with added rows."""
    whole = head_copy_bytes(recipe, model, element)
    if isinstance(recipe.method, QLora):
        packed = _num_packed(model)
        whole += nf4_bytes(recipe.method, packed) - packed // 2 + _dequantized_bytes(model, element)
    return whole


def nf4_bytes(method: QLora, num_params: int) -> int:
    """Bytes of weights in 4 bits: their codes, and a scale for every 64 of them."""
    bits = 4 + (8 / 64 + 32 / (64 * 256) if method.double_quantization else 32 / 64)
    return round(num_params * bits / 8)


def head_copy_bytes(recipe: Recipe, model: ModelFacts, element: int) -> int:
    """Size of the head with added rows in it, which exists once during head and loss if only these rows are trained.
    element: bytes of a frozen weight."""
    if model.added is None or not isinstance(recipe.method, Lora):
        return 0
    return element * model.vocab_size * model.hidden_size


def feed_forward_width(model: ModelFacts) -> int:
    """i: of the configuration; if unknown, the maximum width of a LLaMA block with this number of weights."""
    if model.feed_forward_size is not None:
        return model.feed_forward_size
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    block = max(0, model.num_params - embeddings) / max(1, model.num_layers)
    width = (block - 2 * model.hidden_size**2) / (3 * model.hidden_size)
    return max(model.hidden_size, round(width))

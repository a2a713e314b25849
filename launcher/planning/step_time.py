"""Duration of an optimizer step: an estimate from operations, memory traffic and communication. Pure.

Legend: as in memory.py; E weights of the blocks that compute a token, A weights of adapters, F supervised tokens / N,
d mean length of a document, W processes.

    forward       2 E + 2 d h L + 2 F V h           operations per token: products, causal attention, head
    backward      twice that for a trained base model, once for adapters (no gradients of frozen weights); 6 A more
    recomputing   2 E + 2 d h L with checkpointing
    memory        values that blocks keep (memory.py), read or written TOUCHED times; 28 bytes per trained weight in
                  the update; weights in 4 bits are dequantized for each pass over them
    network       per process and step, of a ring: 2 (W - 1) / W times the gradients; with ZeRO-3 in addition the
                  weights, gathered for each forward, backward and recomputing pass

Operations run at a share of the rate of large products; memory traffic is added. Communication is not overlapped on a
CPU, and hidden behind the backward pass on a GPU as far as it fits.
"""

from dataclasses import dataclass

from tunesmith.configs.plan import BatchFacts, Choice, ModelFacts, SplitFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import LastLayers, Lora, QLora
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.machines import product_of
from tunesmith.launcher.planning.memory import BF16_BYTES, FP32_BYTES, feed_forward_width
from tunesmith.report.wording import duration

TOUCHED = 3.0
"""How often a kept value is written and read in a step, by the kernels around it. Fitted on a CPU."""
UPDATE_BYTES_PER_WEIGHT = 28
"""AdamW reads weight, gradient and two moments and writes weight and moments, in fp32."""


CPU_SHARE = 0.85
"""Products of training as a share of the rate of large ones, on a CPU. Fitted."""
CPU_MEMORY_BYTES_S = 8e9
"""Of one thread. Fitted together with TOUCHED."""
CPU_LINK_BYTES_S = 1e9
"""Of gloo between processes of one machine. Fitted."""
GPU_SHARE = 0.45
"""Assumed: products of training as a share of the data sheet's rate, as good systems report; not measured."""
GPU_MEMORY_SHARE = 0.8
GPU_LINK_SHARE = 0.7
HOST_LINK_BYTES_S = 20e9
"""Assumed of PCIe 4 between a GPU and pinned CPU memory."""
NODE_LINK_GB_S = 25.0
"""Assumed of each GPU between nodes: 200 Gbit/s."""


@dataclass(frozen=True)
class Rates:
    """What one process can do: operations of products per second, bytes of memory and of its link per second. source:
    where the numbers come from. overlaps: whether communication takes place during the backward pass."""

    operations_s: float
    memory_bytes_s: float
    link_bytes_s: float
    source: str
    overlaps: bool = False


@dataclass(frozen=True)
class Sharded:
    """How a step is computed. checkpointing: of activations."""

    zero_stage: int
    world_size: int
    checkpointing: bool
    precision: str


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step of one process, by what they are spent on."""

    products: float
    memory: float
    network: float
    source: str

    @property
    def total(self) -> float:
        return self.products + self.memory + self.network


def rates_of(hardware: Hardware, device: str, precision: str, threads: int, num_nodes: int) -> Rates | None:
    """The rates of one process, of the GPU's data sheet or measured on this CPU; None: unknown."""
    if device == "cuda":
        product = product_of(hardware.gpus[0].name)
        if product is None or precision == "fp32":
            return None
        link = product.link_gb_s if num_nodes == 1 else min(product.link_gb_s, NODE_LINK_GB_S)
        return Rates(
            GPU_SHARE * product.tflops * 1e12,
            GPU_MEMORY_SHARE * product.memory_gb_s * 1e9,
            GPU_LINK_SHARE * link * 1e9,
            f"{GPU_SHARE:.0%} of the {product.tflops:g} TFLOP/s of the data sheet (assumed, not measured)",
            overlaps=True,
        )
    measured = hardware.product_rates
    if measured is None:
        return None
    rate = measured.fp32 if precision == "fp32" else measured.bf16
    if not rate:
        return None
    return Rates(
        CPU_SHARE * rate * 1e9 * threads,
        CPU_MEMORY_BYTES_S * threads,
        CPU_LINK_BYTES_S,
        f"{rate:.0f} GFLOP/s measured on this CPU, {threads} thread{'s' if threads > 1 else ''}",
    )


def operations(recipe: Recipe, model: ModelFacts, train: SplitFacts, checkpointing: bool) -> float:
    """Operations per token of forward, backward and recomputing pass (formula: module docstring)."""
    head_weights = model.vocab_size * model.hidden_size
    embedded = head_weights * (1 if model.tied_embeddings else 2)
    blocks = (model.num_active_params or model.num_params) - embedded
    document = train.num_tokens / max(1, train.num_rows)
    forward = 2.0 * blocks + 2.0 * document * model.hidden_size * model.num_layers
    head = 2.0 * head_weights * train.supervised_tokens / max(1, train.num_tokens)
    if isinstance(recipe.method, Lora):
        total = 2 * (forward + head) + 6.0 * model.num_trained_params
    elif isinstance(recipe.method, LastLayers):
        share = min(1.0, recipe.method.num_layers / max(1, model.num_layers))
        total = forward * (1 + 2 * share) + 2 * head
    else:
        total = 3 * (forward + head)
    return total + (forward if checkpointing else 0.0)


def memory_traffic(
    recipe: Recipe, model: ModelFacts, num_tokens: float, num_passes: int, element: int, num_shards: int = 1
) -> float:
    """Bytes per step of one process, besides the operands of products. num_shards: of the optimizer state."""
    kept = (9 * model.hidden_size + 4 * feed_forward_width(model)) * model.num_layers * element
    traffic = TOUCHED * kept * num_tokens
    traffic += UPDATE_BYTES_PER_WEIGHT * model.num_trained_params / num_shards
    # Every pass adds to the gradients: read and write.
    traffic += 2 * FP32_BYTES * model.num_trained_params * num_passes
    if isinstance(recipe.method, QLora):
        traffic += 2 * num_passes * (element + 0.5) * (model.num_params - model.vocab_size * model.hidden_size)
    return traffic


def offloaded_traffic(recipe: Recipe, model: ModelFacts, num_tokens: float, element: int, num_shards: int) -> float:
    """Bytes per step between a GPU and CPU memory: activations there and back, gradients there and weights back."""
    traffic = 0.0
    if recipe.optimization.offload_activations:
        kept = 6 * model.hidden_size + 3 * feed_forward_width(model)
        traffic += 2.0 * kept * element * model.num_layers * num_tokens
    if recipe.parallelism.offload_optimizer != "none":
        # The update itself, on the CPU, reads and writes seven values per weight at about the rate of the link.
        traffic += (FP32_BYTES + element + UPDATE_BYTES_PER_WEIGHT) * model.num_trained_params / num_shards
    return traffic


def network_traffic(
    recipe: Recipe,
    model: ModelFacts,
    zero_stage: int,
    world_size: int,
    num_passes: int,
    checkpointing: bool,
    element: int,
) -> float:
    """Bytes that one process sends in a step."""
    if world_size == 1:
        return 0.0
    ring = (world_size - 1) / world_size
    sent = 2.0 * ring * FP32_BYTES * model.num_trained_params
    if zero_stage in (
        1,
        2,
    ):  # reduced gradients, then updated weights: as much as an all-reduce, in the weights' precision
        sent = ring * (FP32_BYTES + element) * model.num_trained_params
    if zero_stage == 3:
        gathered = (3 if checkpointing else 2) * num_passes * model.num_params * element
        sent = ring * (gathered + FP32_BYTES * model.num_trained_params * num_passes)
    return sent


def step_time(
    recipe: Recipe,
    model: ModelFacts,
    train: SplitFacts,
    batch: BatchFacts,
    rates: Rates,
    sharded: Sharded,
) -> StepTime:
    """Estimate the duration of a step of one process."""
    zero_stage, world_size, checkpointing = sharded.zero_stage, sharded.world_size, sharded.checkpointing
    element = FP32_BYTES if sharded.precision == "fp32" else BF16_BYTES
    sequences = min(recipe.optimization.global_batch_size, train.num_samples * recipe.optimization.epochs)
    tokens = sequences / world_size * train.num_tokens / max(1, train.num_samples)
    passes = batch.grad_accum_steps
    products = tokens * operations(recipe, model, train, checkpointing) / rates.operations_s
    shards = world_size if zero_stage else 1
    memory = memory_traffic(recipe, model, tokens, passes, element, shards) / rates.memory_bytes_s
    sent = network_traffic(recipe, model, zero_stage, world_size, passes, checkpointing, element)
    network = sent / rates.link_bytes_s
    if rates.overlaps:
        network = max(0.0, network - 0.6 * products)
    network += offloaded_traffic(recipe, model, tokens, element, shards) / HOST_LINK_BYTES_S
    return StepTime(products, memory, network, rates.source)


def step_time_choice(time: StepTime | None, total_steps: int) -> list[Choice]:
    """The estimate as a line of the plan; empty if the rates are unknown."""
    if time is None:
        return []
    parts = [f"products {duration(time.products)}", f"memory {duration(time.memory)}"]
    if time.network:
        parts.append(f"communication {duration(time.network)}")
    return [
        Choice(
            key="step time",
            value=duration(time.total),
            reason=f"estimated: {', '.join(parts)}; {time.source}. All steps: {duration(time.total * total_steps)}",
        )
    ]

"""Chooses the ZeRO stage: the lowest whose shard fits in the memory of a process. Pure.

Legend as in memory.py: P weights, T of them trained; W processes. Bytes of a process in addition to activations:

    stage 0   everything (memory.py)
    stage 1   optimizer state and master weights / W
    stage 2   also gradients / W; no more communication than stage 1, so auto never chooses 1
    stage 3   also weights / W, and the largest layer that is gathered for use; 1.5 times the communication. Scales of
              weights in 4 bits are no parameters: each process holds all of them

On a CPU DeepSpeed does not free gathered weights between layers, up to 1e9 of them, and collectives copy their buffers.
Stage 3 there takes, in addition to its shards (b bytes per weight, L live and B bucket elements):

    gathered  3 b L                         the weights, the buffer they are gathered into, and the collective's copy
    trained   8 min(T, L)                   full gradients and their contiguous copy, before they are reduced
    bucket    12 B                          instead of 8 B
    update    4 T / W                       the gradient shard once more, flattened

Measured with gloo on 2 processes, full fine-tuning in fp32, 512 tokens, after 7 steps: 2.78 GB for 47.6 M weights and
4.40 GB for 94.8 M; the estimates are 13% and 8% higher (without these terms 29% and 42% lower). LoRA on 47.6 M weights:
1.68 GB after 4 steps, 10% below the estimate.

With bf16 the trained weights take 2 bytes and their masters 4 T / W; in fp32, stages 1 and 2 copy their shard of the
weights. State offloaded to the CPU or to NVMe does not use GPU memory; it gives no benefit without a GPU.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.configs.combinations import combination_of, require_combination
from tunesmith.configs.deepspeed import BUCKET_ELEMENTS, Numbers, adopt, deepspeed_config
from tunesmith.configs.plan import BatchFacts, Choice, ModelFacts, ParallelismFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Full, LastLayers, Lora, QLora
from tunesmith.configs.sections.processes import Parallelism
from tunesmith.errors import InputError
from tunesmith.launcher.planning.memory import (
    BF16_BYTES,
    FP32_BYTES,
    Footprint,
    feed_forward_width,
    footprint,
    whole_bytes,
)
from tunesmith.report.wording import plural

LIVE_ELEMENTS = 1_000_000_000
"""Gathered weights that DeepSpeed keeps (stage3_max_live_parameters, if the user's file does not set it)."""
SHARE = 0.9
"""Share of the memory that a stage may use to be chosen, as in batching.py."""
_SHARDED = {
    0: "nothing",
    1: "optimizer state",
    2: "optimizer state and gradients",
    3: "optimizer state, gradients and weights",
}


@dataclass(frozen=True)
class Sharding:
    """parallelism: the section of the recipe, completed from the user's DeepSpeed file. shape: footprint of one
    process."""

    zero_stage: int
    parallelism: Parallelism
    shape: Footprint
    choices: list[Choice]


def choose_sharding(
    recipe: Recipe,
    model: ModelFacts,
    shape: Footprint,
    *,
    longest_tokens: int,
    memory_bytes: int,
    world_size: int,
    device: str,
    precision: str,
    installed: Callable[[str], bool] = lambda package: True,
    user: Mapping[str, Any] | None = None,
) -> Sharding:
    """Choose the stage and return the resulting footprint of one process. shape: footprint without sharding. user:
    content of parallelism.deepspeed_config.

    Raises InputError if the recipe combines incompatible options, or needs a package that is not installed.
    """
    in_recipe = recipe.parallelism.zero_stage
    parallelism = adopt(recipe.parallelism, user) if user else recipe.parallelism
    recipe = recipe.model_copy(update={"parallelism": parallelism})

    def sharded(stage: int) -> Footprint:
        return _shard(shape, recipe, model, stage, world_size, device, precision, live=_live_elements(user))

    def fits(stage: int, checkpointing: bool) -> bool:
        return sharded(stage).peak(longest_tokens, checkpointing) <= SHARE * memory_bytes

    if parallelism.zero_stage != "auto":
        stage = parallelism.zero_stage
        why = "set in the recipe" if in_recipe == stage else "set in the DeepSpeed configuration"
    else:
        stage, why = _choose(recipe, fits, world_size, installed("deepspeed"))
    require_combination(combination_of(recipe, zero_stage=stage, device=device))
    _require_installed(recipe, stage, installed)
    choices = [
        Choice(
            key="zero_stage",
            value=stage,
            reason=f"{why}; {plural(world_size, 'process', 'processes')} shard {_SHARDED[stage]}" if stage else why,
            num_bytes=sharded(stage).fixed - sharded(stage).process,
        )
    ]
    return Sharding(stage, parallelism, sharded(stage), choices)


def parallelism_facts(
    sharding: Sharding,
    recipe: Recipe,
    model: ModelFacts,
    batch: BatchFacts,
    *,
    device: str,
    precision: str,
    user: Mapping[str, Any] | None = None,
    user_file: str = "",
) -> ParallelismFacts:
    """The parallelism section of the plan, with the complete DeepSpeed configuration. Raises InputError if the user's
    file contradicts it."""
    parallelism = sharding.parallelism
    facts = ParallelismFacts.model_validate(
        {
            "zero_stage": sharding.zero_stage,
            "offload_optimizer": parallelism.offload_optimizer,
            "offload_params": parallelism.offload_params,
        }
    )
    if sharding.zero_stage == 0:
        return facts
    numbers = Numbers(
        micro_batch_size=batch.micro_batch_size,
        grad_accum_steps=batch.grad_accum_steps,
        num_trained_params=model.num_trained_params,
        precision=precision,
        trains_base=isinstance(recipe.method, Full | LastLayers),
        device=device,
    )
    config = deepspeed_config(
        facts, recipe.optimization, numbers, nvme_path=parallelism.nvme_path, user=user, user_file=user_file
    )
    return facts.model_copy(update={"deepspeed": config})


def _choose(recipe: Recipe, fits: Callable[[int, bool], bool], world_size: int, has_deepspeed: bool) -> tuple[int, str]:
    parallelism = recipe.parallelism
    if "nvme" in (parallelism.offload_optimizer, parallelism.offload_params) or parallelism.offload_params != "none":
        return 3, "required by offloading"
    offloads = parallelism.offload_optimizer != "none"
    if world_size == 1:
        return (2, "required by offloading") if offloads else (0, "a single process: nothing to shard")
    if not has_deepspeed and not offloads:
        return 0, "DeepSpeed is not installed: every process holds the full model"
    # Adapters are so small that sharding their gradients and optimizer state gains nothing.
    stages = [3] if isinstance(recipe.method, Lora) else [2, 3]
    stages = [2, 3] if offloads else [0, *stages]
    for checkpointing in (False, True):
        for stage in stages:
            if fits(stage, checkpointing):
                lower = stages[: stages.index(stage)]
                why = "the full model fits in every process" if stage == 0 else "the lowest stage that fits in memory"
                return stage, why if lower or stage == 0 else "required by offloading"
    return 3, "no lower stage fits in memory"


def _shard(
    shape: Footprint,
    recipe: Recipe,
    model: ModelFacts,
    stage: int,
    world_size: int,
    device: str,
    precision: str,
    *,
    live: int = LIVE_ELEMENTS,
) -> Footprint:
    """Footprint of one process in a stage. shape: footprint without sharding. live: limit of gathered weights."""
    if stage == 0:
        return shape
    trained = model.num_trained_params
    weights, masters = shape.weights, 0
    if isinstance(recipe.method, Full | LastLayers) and precision == "bf16":
        weights, masters = shape.weights - trained * FP32_BYTES, trained * FP32_BYTES
    elif stage < 3:
        masters = trained * FP32_BYTES
    trains_base = isinstance(recipe.method, Full | LastLayers)
    state = math.ceil((shape.optimizer + masters) / world_size)
    gradients = shape.gradients if stage == 1 else math.ceil(shape.gradients / world_size)
    if stage == 2 and precision == "bf16" and trains_base:  # the reduced shard in 16 bits, next to that in fp32
        gradients += math.ceil(trained * BF16_BYTES / world_size)
    gathered = host = 0
    if stage == 3:
        element = FP32_BYTES if precision == "fp32" or (precision == "fp16" and trains_base) else BF16_BYTES
        whole = whole_bytes(recipe, model, element)
        weights = whole + math.ceil((weights - whole) / world_size)
        if recipe.parallelism.offload_params != "none" and device == "cuda":
            weights, host = whole, weights - whole
        if device == "cpu":
            live, gradients = min(model.num_params, live), 2 * gradients
            gathered = 3 * element * live + 2 * FP32_BYTES * min(trained, live)
        else:
            layer = 3 * model.hidden_size * feed_forward_width(model)
            gathered = 2 * element * max(model.vocab_size * model.hidden_size, layer)
    if recipe.parallelism.offload_optimizer != "none" and device == "cuda":
        # Reduced gradients are moved to the CPU, where the update takes place.
        gradients, state, host = 0, 0, host + gradients + state
    # What a block keeps depends on the stage: with sharded weights it is not replaced by a faster one.
    staged = recipe.parallelism.model_copy(update={"zero_stage": stage})
    own = footprint(recipe.model_copy(update={"parallelism": staged}), model, precision != "fp32", device)
    shape = replace(shape, token=own.token, token_checkpointed=own.token_checkpointed)
    copies = 3 if stage == 3 and device == "cpu" else 2
    buckets = copies * FP32_BYTES * min(BUCKET_ELEMENTS, trained)
    return replace(
        shape,
        weights=weights,
        gathered=gathered,
        gradients=gradients,
        optimizer=state,
        process=shape.process + buckets,
        host=host,
    )


def _live_elements(user: Mapping[str, Any] | None) -> int:
    """The limit of gathered weights in the user's DeepSpeed file, or DeepSpeed's own."""
    zero = (user or {}).get("zero_optimization")
    limit = zero.get("stage3_max_live_parameters") if isinstance(zero, Mapping) else None
    return int(limit) if isinstance(limit, int | float) else LIVE_ELEMENTS


def _require_installed(recipe: Recipe, stage: int, installed: Callable[[str], bool]) -> None:
    needed = []
    if stage and not installed("deepspeed"):
        needed.append(("deepspeed", f"parallelism.zero_stage: {stage}", "set parallelism.zero_stage: 0"))
    if isinstance(recipe.method, QLora) and not installed("bitsandbytes"):
        needed.append(("qlora", "method.kind: qlora", "set method.kind: lora"))
    if recipe.optimization.optimizer != "adamw" and not installed("bitsandbytes"):
        needed.append(
            ("qlora", f"optimization.optimizer: {recipe.optimization.optimizer}", "set optimization.optimizer: adamw")
        )
    for extra, key, instead in needed:
        raise InputError(
            f"{key} needs a package that is not installed", remedy=f"pip install 'tunesmith[{extra}]', or {instead}"
        )

"""How the processes of a run divide the model among them: the lowest ZeRO stage whose share fits the memory. Pure.

Legend as in memory.py: P weights, T of them trained; W processes. Bytes a process holds beside activations:

    stage 0   everything (memory.py)
    stage 1   optimizer state and masters / W
    stage 2   gradients / W as well: no more traffic than stage 1, so auto never stops at 1
    stage 3   weights / W as well, and the largest part that is gathered for use; half as much traffic again

With bf16 the weights that are trained are 2 bytes and their masters 4 T / W; in fp32 stages 1 and 2 copy their share of
the weights. What is offloaded to the CPU or to nvme leaves the GPU; a run without a GPU gains nothing from it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.configs.combinations import combination_of, require_combination
from tunesmith.configs.deepspeed import BUCKET_ELEMENTS, Numbers, adopt, deepspeed_config
from tunesmith.configs.plan import BatchFacts, Choice, ModelFacts, ParallelismFacts
from tunesmith.configs.recipe import Full, LastLayers, Lora, Parallelism, QLora, Recipe
from tunesmith.errors import InputError
from tunesmith.launcher.planning.memory import BF16_BYTES, FP32_BYTES, Footprint, feed_forward_width, footprint
from tunesmith.report.wording import plural

SHARE = 0.9
"""Of the memory, that a stage may fill to be chosen: as in batching.py."""
_DIVIDED = {
    0: "nothing",
    1: "the optimizer's state",
    2: "the optimizer's state and gradients",
    3: "the optimizer's state, gradients and weights",
}


@dataclass(frozen=True)
class Division:
    """parallelism: the recipe's section, filled up from the user's DeepSpeed file. shape: of one process."""

    zero_stage: int
    parallelism: Parallelism
    shape: Footprint
    choices: list[Choice]


def choose_division(
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
) -> Division:
    """The stage, what one process then holds, and why. shape: of a process that divides nothing. user: the content of
    parallelism.deepspeed_config.

    InputError where the recipe combines what does not go together, or needs a package that is not installed.
    """
    asked = recipe.parallelism.zero_stage
    wanted = adopt(recipe.parallelism, user) if user else recipe.parallelism
    recipe = recipe.model_copy(update={"parallelism": wanted})

    def divided(stage: int) -> Footprint:
        return _share(shape, recipe, model, stage, world_size, device, precision)

    def fits(stage: int, checkpointing: bool) -> bool:
        return divided(stage).peak(longest_tokens, checkpointing) <= SHARE * memory_bytes

    if wanted.zero_stage != "auto":
        stage = wanted.zero_stage
        why = "set in the recipe" if asked == stage else "set in the DeepSpeed configuration"
    else:
        stage, why = _choose(recipe, fits, world_size, installed("deepspeed"))
    require_combination(combination_of(recipe, zero_stage=stage, device=device))
    _require_installed(recipe, stage, installed)
    choices = [
        Choice(
            key="zero_stage",
            value=stage,
            reason=f"{why}; {plural(world_size, 'process', 'processes')} divide {_DIVIDED[stage]}" if stage else why,
            num_bytes=divided(stage).fixed - divided(stage).process,
        )
    ]
    return Division(stage, wanted, divided(stage), choices)


def parallelism_facts(
    division: Division,
    recipe: Recipe,
    model: ModelFacts,
    batch: BatchFacts,
    *,
    device: str,
    precision: str,
    user: Mapping[str, Any] | None = None,
    user_file: str = "",
) -> ParallelismFacts:
    """For the plan: with DeepSpeed's whole configuration. InputError where the user's file contradicts it."""
    wanted = division.parallelism
    facts = ParallelismFacts.model_validate(
        {
            "zero_stage": division.zero_stage,
            "offload_optimizer": wanted.offload_optimizer,
            "offload_params": wanted.offload_params,
        }
    )
    if division.zero_stage == 0:
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
        facts, recipe.optimization, numbers, nvme_path=wanted.nvme_path, user=user, user_file=user_file
    )
    return facts.model_copy(update={"deepspeed": config})


def _choose(recipe: Recipe, fits: Callable[[int, bool], bool], world_size: int, has_deepspeed: bool) -> tuple[int, str]:
    wanted = recipe.parallelism
    if "nvme" in (wanted.offload_optimizer, wanted.offload_params) or wanted.offload_params != "none":
        return 3, "what is offloaded asks for it"
    offloads = wanted.offload_optimizer != "none"
    if world_size == 1:
        return (2, "what is offloaded asks for it") if offloads else (0, "one process: there is nobody to divide with")
    if not has_deepspeed and not offloads:
        return 0, "DeepSpeed is not installed: every process holds the whole model"
    # Adapters are so small that dividing their gradients and state gains nothing.
    stages = [3] if isinstance(recipe.method, Lora) else [2, 3]
    stages = [2, 3] if offloads else [0, *stages]
    for checkpointing in (False, True):
        for stage in stages:
            if fits(stage, checkpointing):
                lower = stages[: stages.index(stage)]
                why = "every process has room for all of it" if stage == 0 else "the lowest that fits the memory"
                return stage, why if lower or stage == 0 else "what is offloaded asks for it"
    return 3, "no lower stage fits the memory"


def _share(
    shape: Footprint,
    recipe: Recipe,
    model: ModelFacts,
    stage: int,
    world_size: int,
    device: str,
    precision: str,
) -> Footprint:
    """What one process holds in a stage. shape: of a process that divides nothing."""
    if stage == 0:
        return shape
    trained = model.num_trained_params
    weights, masters = shape.weights, 0
    if isinstance(recipe.method, Full | LastLayers) and precision == "bf16":
        weights, masters = shape.weights - trained * FP32_BYTES, trained * FP32_BYTES
    elif stage < 3:
        masters = trained * FP32_BYTES
    state = math.ceil((shape.optimizer + masters) / world_size)
    if recipe.parallelism.offload_optimizer != "none" and device == "cuda":
        state = 0
    gradients = shape.gradients if stage == 1 else math.ceil(shape.gradients / world_size)
    if stage == 3:
        element = BF16_BYTES if precision == "bf16" else FP32_BYTES
        gathered = element * max(
            model.vocab_size * model.hidden_size, 3 * model.hidden_size * feed_forward_width(model)
        )
        at_rest = math.ceil(weights / world_size)
        if recipe.parallelism.offload_params != "none" and device == "cuda":
            at_rest = 0
        weights = at_rest + 2 * gathered
        # Blocks whose weights are divided keep their own forms, and with them every activation.
        divided = recipe.parallelism.model_copy(update={"zero_stage": 3})
        plain = footprint(recipe.model_copy(update={"parallelism": divided}), model, precision == "bf16", device)
        shape = replace(shape, token=plain.token, token_checkpointed=plain.token_checkpointed)
    buckets = 2 * FP32_BYTES * min(BUCKET_ELEMENTS, trained)
    return replace(shape, weights=weights, gradients=gradients, optimizer=state, process=shape.process + buckets)


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

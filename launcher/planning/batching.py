"""Chooses the micro-batch size: as many sequences as fit in memory, but no more than improve throughput."""

import math
from dataclasses import dataclass

from tunesmith.configs.plan import Choice, DataFacts, SplitFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Lora, QLora
from tunesmith.errors import InputError
from tunesmith.launcher.planning.memory import Footprint
from tunesmith.report.wording import count, plural, size

CPU_TOKENS = 512
"""Tokens per forward pass beyond which a CPU gains little: its matrix products reach full speed well before. LoRA
steps of SmolLM2-135M with passes of 490 and 980 tokens, three alternating pairs: 129, 129, 129 and 124, 136, 140 tokens
per CPU second, with a peak of 1.9 and 2.5 GB."""
GPU_TOKENS = 32_768
"""Limit of the tokens of a pass on a GPU: by arithmetic, matrix products of an 8B model reach their full rate at about
4,096 tokens (not measured), and the estimate of memory grows less certain with every token."""
SATURATING_TOKENS = {"cpu": CPU_TOKENS, "cuda": GPU_TOKENS}
USED_SHARE = 0.9
"""Share of the free memory to use: the footprint is only an estimate."""


class DoesNotFit(InputError):
    """The run needs more memory than there is. needed_bytes, memory_bytes: of one process."""

    def __init__(self, *, needed_bytes: int, memory_bytes: int, where: str, remedy: str):
        super().__init__(
            f"the run needs about {size(needed_bytes)} of memory, but {size(memory_bytes)} are free",
            where=where,
            remedy=remedy,
        )
        self.needed_bytes, self.memory_bytes = needed_bytes, memory_bytes


@dataclass(frozen=True)
class Batching:
    micro_batch_size: int
    grad_accum_steps: int
    gradient_checkpointing: bool
    peak_bytes: int
    pass_tokens: int
    """Tokens of the largest forward pass."""
    choices: list[Choice]


def choose_batching(
    recipe: Recipe, data: DataFacts, shape: Footprint, memory_bytes: int, device: str, world_size: int = 1
) -> Batching:
    """Choose micro-batch size, accumulation and checkpointing of one rank. Raises DoesNotFit if one sequence does
    not fit.

    Memory is estimated for the longest sequence (max_seq_len if packed), the useful tokens of a pass for the mean one.
    """
    train = data.train
    if not train.num_samples:
        raise InputError("there are no training rows", where="key data.train", remedy="name files that contain rows")
    optimization = recipe.optimization
    longest = recipe.data.max_seq_len if recipe.packs else train.longest_tokens
    share = math.ceil(min(optimization.global_batch_size, data.samples_per_epoch * optimization.epochs) / world_size)
    mean = max(1, train.num_tokens // train.num_samples)
    useful = min(share, max(1, SATURATING_TOKENS[device] // mean))
    if optimization.micro_batch_size is not None:
        useful = min(share, optimization.micro_batch_size)
    requested = optimization.gradient_checkpointing
    for checkpointing in [False, True] if requested is None else [requested]:
        fitting = _max_that_fit(shape, longest, int(USED_SHARE * memory_bytes), checkpointing)
        if fitting >= (useful if optimization.micro_batch_size is not None else 1):
            return _batching(recipe, train, shape, longest, min(fitting, useful), fitting, share, checkpointing, device)
    smallest = useful if optimization.micro_batch_size is not None else 1
    checkpointing = requested is not False
    if shape.peak(smallest * longest, checkpointing) <= memory_bytes:  # tight, but it may fit
        return _batching(recipe, train, shape, longest, smallest, smallest, share, checkpointing, device)
    raise _does_not_fit(recipe, longest, shape, memory_bytes, smallest, checkpointing, device)


def _max_that_fit(shape: Footprint, longest: int, budget: int, checkpointing: bool) -> int:
    """Maximum number of sequences of the longest length; 0 if not even one fits."""
    return max(0, (budget - shape.fixed) // max(1, shape.activations(longest, checkpointing)))


def _batching(
    recipe: Recipe,
    train: SplitFacts,
    shape: Footprint,
    longest: int,
    micro: int,
    fitting: int,
    share: int,
    checkpointing: bool,
    device: str,
) -> Batching:
    requested = recipe.optimization.micro_batch_size
    accumulation = math.ceil(share / micro)
    if requested is None:
        micro = math.ceil(share / accumulation)  # passes of equal size
    tokens = micro * longest
    why = f"a step has {plural(share, 'sequence')} per process"
    if requested is not None:
        why = "set in the recipe" if micro == requested else f"set higher in the recipe, but {why}"
    elif micro < share and micro < fitting:
        saturating, name = count(SATURATING_TOKENS[device]), "a GPU" if device == "cuda" else "a CPU"
        why = f"about {saturating} tokens saturate {name}; larger batches would not be faster"
        if train.num_tokens // train.num_samples > SATURATING_TOKENS[device]:
            why = f"one sequence has more than the {saturating} tokens that saturate {name}"
    elif micro < share:
        why = f"the largest that fits in memory, with {plural(longest, 'token')} per sequence"
    choices = [
        Choice(key="micro_batch_size", value=micro, reason=why, num_bytes=shape.activations(tokens, checkpointing)),
        Choice(
            key="grad_accum_steps",
            value=accumulation,
            reason=f"global_batch_size {recipe.optimization.global_batch_size} in passes of {micro} per process",
        ),
        Choice(
            key="gradient_checkpointing",
            value=checkpointing,
            reason=_checkpointing_reason(recipe, shape, checkpointing),
        ),
        *_offload_choice(recipe, shape, tokens, checkpointing),
        Choice(
            key="peak memory",
            value="",
            reason=f"estimated: weights {size(shape.weights)}, gradients and optimizer "
            f"{size(shape.gradients + shape.optimizer)}, activations {size(shape.activations(tokens, checkpointing))}, "
            f"{_constant_parts(device)} {size(shape.process)}",
            num_bytes=shape.peak(tokens, checkpointing),
        ),
    ]
    return Batching(micro, accumulation, checkpointing, shape.peak(tokens, checkpointing), tokens, choices)


def _offload_choice(recipe: Recipe, shape: Footprint, tokens: int, checkpointing: bool) -> list[Choice]:
    if not recipe.optimization.offload_activations:
        return []
    kept = "inputs of blocks" if checkpointing else "activations"
    reason = f"set in the recipe; {kept} of all blocks but one are in pinned CPU memory"
    on_host = shape.activations_on_host(tokens, checkpointing)
    return [Choice(key="offload_activations", value=True, reason=reason, num_bytes=on_host)]


def _constant_parts(device: str) -> str:
    return "CUDA, NCCL, buffers and head" if device == "cuda" else "libraries and head"


def _checkpointing_reason(recipe: Recipe, shape: Footprint, checkpointing: bool) -> str:
    if recipe.optimization.gradient_checkpointing is not None:
        return "set in the recipe"
    if checkpointing:
        return f"without it a token needs {size(shape.token)}, which does not fit; steps take about a third longer"
    return "all activations fit; recomputing them would take about a third more time"


def _does_not_fit(
    recipe: Recipe, longest: int, shape: Footprint, memory_bytes: int, micro: int, checkpointing: bool, device: str
) -> DoesNotFit:
    tokens = micro * longest
    needs = (
        f"weights {size(shape.weights)}, gradients and optimizer {size(shape.gradients + shape.optimizer)}, "
        f"activations {size(shape.activations(tokens, checkpointing))} "
        f"({plural(micro, 'sequence')} of {plural(longest, 'token')}), libraries {size(shape.process)}"
    )
    ways = []
    if recipe.optimization.micro_batch_size is not None and micro > 1:
        ways.append("remove optimization.micro_batch_size")
    if recipe.optimization.gradient_checkpointing is False:
        ways.append("remove optimization.gradient_checkpointing")
    if device == "cuda" and not recipe.optimization.offload_activations:
        ways.append("set optimization.offload_activations: true")
    room = (memory_bytes - shape.fixed) // max(1, shape.activations(1, True))
    if 64 <= room < longest:
        ways.append(f"set data.max_seq_len to {room // 64 * 64} or less")
    if not isinstance(recipe.method, Lora):
        ways.append("train fewer weights (method.kind=lora)")
    elif not isinstance(recipe.method, QLora):
        ways.append("keep the frozen weights in 4 bits (method.kind=qlora)")
    ways.append("use a smaller model or a machine with more memory")
    return DoesNotFit(
        needed_bytes=shape.peak(tokens, checkpointing),
        memory_bytes=memory_bytes,
        where=needs,
        remedy="; or ".join(ways),
    )

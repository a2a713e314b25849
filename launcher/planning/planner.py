"""A recipe, a model, prepared data and a machine become a plan: every number with its reason. No torch, no disk."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.configs.plan import BatchFacts, Choice, ComputeFacts, DataFacts, ModelFacts, Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.tasks import listed
from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.batching import Batching, choose_batching
from tunesmith.launcher.planning.disk import checkpoint_bytes
from tunesmith.launcher.planning.memory import Footprint, footprint
from tunesmith.launcher.planning.saving import choose_saving
from tunesmith.launcher.planning.sharding import choose_division, parallelism_facts
from tunesmith.launcher.planning.world import World
from tunesmith.report.wording import count, plural

ALONE = World()


@dataclass(frozen=True)
class OwnConfig:
    """A DeepSpeed configuration of the user's: what the file holds, and its name for messages."""

    content: dict[str, Any]
    file: str


@dataclass(frozen=True)
class Device:
    """Where a rank computes and in what precision."""

    device: str
    precision: str
    memory_bytes: int
    threads: int
    choices: list[Choice]


def make_plan(
    recipe: Recipe,
    model: ModelFacts,
    data: DataFacts,
    hardware: Hardware,
    *,
    world: World = ALONE,
    world_choice: Choice | None = None,
    recipe_file: Path | None = None,
    working_dir: Path | None = None,
    threads: int | None = None,
    installed: Callable[[str], bool] = lambda package: True,
    own: OwnConfig | None = None,
) -> Plan:
    """The plan of a run. Pure: the same arguments give the same plan.

    hardware: of one machine of the world. world, world_choice: the processes, and why so many. Memory is reckoned for
    the fewest that may go on.
    threads: as the user's OMP_NUM_THREADS says, where it does. recipe_file, working_dir: what paths are relative to.
    installed: whether an optional package is there. own: what parallelism.deepspeed_config names.
    Raises InputError where the run cannot fit the memory, the recipe asks for what the data cannot give, or combines
    what does not go together.
    """
    place = choose_device(recipe, hardware, world.per_node, threads)
    require_positions(recipe, model, data)
    require_unrelated(recipe)
    division = choose_division(
        recipe,
        model,
        footprint(recipe, model, bf16=place.precision == "bf16", device=place.device),
        longest_tokens=data.train.longest_tokens,
        memory_bytes=place.memory_bytes,
        world_size=world.min_size,
        device=place.device,
        precision=place.precision,
        installed=installed,
        user=own.content if own else None,
    )
    batching = choose_batching(recipe, data.train, division.shape, place.memory_bytes, place.device, world.min_size)
    schedule, schedule_choices = choose_steps(recipe, data, batching)
    host_bytes = hardware.memory_bytes if place.device == "cuda" else place.memory_bytes - batching.peak_bytes
    staging_bytes, saving_choice = choose_saving(recipe, model, host_bytes)
    return Plan(
        tunesmith_version=__version__,
        recipe=recipe,
        recipe_file=str(recipe_file.resolve()) if recipe_file else "",
        working_dir=str(working_dir.resolve()) if working_dir else "",
        model=model,
        data=data,
        batch=schedule,
        compute=compute_facts(place, batching, world, checkpoint_bytes(model), staging_bytes),
        parallelism=parallelism_facts(
            division,
            recipe,
            model,
            schedule,
            device=place.device,
            precision=place.precision,
            user=own.content if own else None,
            user_file=own.file if own else "",
        ),
        choices=[
            *place.choices,
            *([world_choice] if world_choice else []),
            trained_choice(recipe, model, division.shape),
            *rows_choice(recipe),
            *division.choices,
            *batching.choices,
            *schedule_choices,
            saving_choice,
        ],
    )


def compute_facts(
    place: Device, batching: Batching, world: World, checkpoint_size: int, staging_bytes: int
) -> ComputeFacts:
    """Where and how each rank computes. checkpoint_size: bytes of one checkpoint."""
    return ComputeFacts(
        device="cuda" if place.device == "cuda" else "cpu",
        precision="bf16" if place.precision == "bf16" else "fp32",
        gradient_checkpointing=batching.gradient_checkpointing,
        world_size=world.size,
        min_world_size=world.min_size,
        nodes=world.nodes,
        threads_per_rank=place.threads,
        memory_bytes=place.memory_bytes,
        estimated_peak_bytes=batching.peak_bytes,
        checkpoint_bytes=checkpoint_size,
        staging_bytes=staging_bytes,
    )


def trained_choice(recipe: Recipe, model: ModelFacts, shape: Footprint) -> Choice:
    """How many weights the method trains, and what they cost."""
    return Choice(
        key="trained weights",
        value=f"{count(model.num_trained_params)} of {count(model.num_params)}",
        reason=f"method {recipe.method.kind}; with gradient and two AdamW moments in fp32",
        num_bytes=shape.gradients + shape.optimizer + 4 * model.num_trained_params,
    )


def rows_choice(recipe: Recipe) -> list[Choice]:
    """How rows of a task that counts them one by one lie in a forward pass; nothing for the others."""
    if recipe.task_facts.packs:
        return []
    reason = f"the task {recipe.task} counts rows; those of a forward pass lie end to end, without padding"
    if recipe.task_facts.is_encoder_decoder:
        reason = "encoder-decoder attention knows no rows end to end: they are padded to the longest of a forward pass"
    return [Choice(key="packing", value=False, reason=reason)]


def require_positions(recipe: Recipe, model: ModelFacts, data: DataFacts) -> None:
    """Raises InputError where a row has more tokens than the model has positions (BERT: 512)."""
    limit = model.max_positions
    if limit is None or recipe.task_facts.is_encoder_decoder:  # source and target have positions of their own
        return
    targets = 0
    if recipe.task_facts.is_classifier:
        targets = len(data.labels or []) if recipe.classification.kind == "multi_label" else 1
    longest = max(split.longest_tokens for split in (data.train, data.validation) if split is not None) - targets
    if longest > limit:
        raise InputError(
            f"the longest row has {longest} tokens, and the model has positions for {limit}",
            where="key data.max_seq_len",
            remedy=f"set data.max_seq_len to {limit + targets} or less, and data.too_long to truncate or drop",
        )


def require_unrelated(recipe: Recipe) -> None:
    """Raises InputError where the loss compares a batch's prompts with other rows' answers, and a batch is one row."""
    if recipe.task_facts.needs_unrelated and recipe.optimization.global_batch_size < 2:
        raise InputError(
            f"the task {recipe.task} compares each row with others of its step, and a step has one row",
            where="key optimization.global_batch_size",
            remedy="set it to 2 or more; 16 is usual",
        )


def choose_device(recipe: Recipe, hardware: Hardware, per_node: int, threads: int | None) -> Device:
    """GPU where there is one that torch can use, otherwise the CPU; precision by what it computes natively.

    per_node: processes of one machine.
    """
    gpu = hardware.gpus[0] if hardware.gpus and hardware.torch_has_cuda else None
    if gpu is not None and per_node > len(hardware.gpus):
        raise InputError(
            f"{per_node} processes need as many GPUs, and {len(hardware.gpus)} can be seen",
            remedy="start fewer processes, or check CUDA_VISIBLE_DEVICES",
        )
    if gpu is not None:
        device, why = "cuda", f"{gpu.name}, capability {'.'.join(map(str, gpu.capability))}"
        memory, memory_why = min(g.free_bytes for g in hardware.gpus[:per_node]), "free on the GPU"
    else:
        device, why = "cpu", "no GPU can be seen"
        if hardware.gpus:
            why = f"{hardware.gpus[0].name} is here, but the installed torch is built without CUDA"
        memory, memory_why = hardware.memory_bytes // per_node, hardware.memory_source
    precision, precision_why = choose_precision(recipe, hardware, gpu.capability if gpu else None)
    per_rank = max(1, hardware.cores // per_node)
    threads_why = hardware.cores_source + (f", shared by {per_node} processes" if per_node > 1 else "")
    if threads is not None:
        per_rank, threads_why = threads, "OMP_NUM_THREADS"
    choices = [
        Choice(key="device", value=device, reason=why),
        Choice(key="memory", value="", reason=memory_why, num_bytes=memory),
        Choice(key="precision", value=precision, reason=precision_why),
        Choice(key="threads_per_rank", value=per_rank, reason=threads_why),
    ]
    return Device(device, precision, memory, per_rank, choices)


def choose_precision(recipe: Recipe, hardware: Hardware, capability: tuple[int, int] | None) -> tuple[str, str]:
    """fp32 or bf16, and why. capability: of the GPU that computes, None on a CPU."""
    native = capability >= (8, 0) if capability is not None else "amx_bf16" in hardware.cpu_flags
    if capability is not None:
        fact = f"capability {capability[0]}.{capability[1]} " + ("has" if native else "lacks") + " bf16 tensor cores"
    elif native:
        fact = "this CPU has bf16 matrix units (AMX)"
    else:
        fact = "this CPU has no bf16 matrix units (AMX): bf16 products would be many times slower than fp32"
    if recipe.precision == "auto":
        return ("bf16" if native else "fp32"), fact
    return recipe.precision, f"set in the recipe; {fact}"


def choose_steps(recipe: Recipe, data: DataFacts, batching: Batching) -> tuple[BatchFacts, list[Choice]]:
    """How many steps, and what happens at which. Everything follows from the number of samples."""
    wanted = recipe.optimization
    samples, batch = data.train.num_samples, wanted.global_batch_size
    noun = plural(samples, "packed sequence" if recipe.packs else "row")
    planned = math.ceil(samples * wanted.epochs / batch)
    total = min(planned, wanted.max_steps or planned)
    why = f"{noun} x {plural(wanted.epochs, 'epoch')} / {batch} a step, rounded up"
    if total < planned:
        why = f"max_steps; {why} would be {count(planned)}"
    an_epoch = max(1, math.ceil(samples / batch))
    # Rounded first: 0.07 * 100 is a little more than 7 in floating point. One step is left for the full rate.
    warmup = min(math.ceil(round(wanted.warmup_fraction * total, 9)), total - 1)
    checkpoint, checkpoint_why = recipe.checkpoint.every_steps, "set in the recipe"
    if checkpoint is None:
        checkpoint, checkpoint_why = min(an_epoch, total), "once an epoch"
    kept = f"the last {recipe.checkpoint.keep_last}" + (" and the best" if recipe.evaluation.early_stopping else "")
    evaluation, evaluation_why = _choose_evaluation(recipe, data, an_epoch, total)
    steps = BatchFacts(
        micro_batch_size=batching.micro_batch_size,
        grad_accum_steps=batching.grad_accum_steps,
        steps_per_epoch=samples / batch,
        total_steps=total,
        warmup_steps=warmup,
        checkpoint_every_steps=checkpoint,
        evaluation_every_steps=evaluation,
    )
    choices = [
        Choice(key="total_steps", value=total, reason=why),
        Choice(key="warmup_steps", value=warmup, reason=f"warmup_fraction {wanted.warmup_fraction:g} of all steps"),
        Choice(key="checkpoint_every_steps", value=checkpoint, reason=f"{checkpoint_why}; {kept} stay"),
        Choice(key="evaluation_every_steps", value=evaluation or "–", reason=evaluation_why),
    ]
    return steps, choices


def _choose_evaluation(recipe: Recipe, data: DataFacts, an_epoch: int, total: int) -> tuple[int | None, str]:
    wanted = recipe.evaluation
    for key, value in (("retain", wanted.retain), ("few_shot", wanted.few_shot)):
        if value and not recipe.task_facts.is_language_modeling:
            raise InputError(
                f"evaluation.{key} compares models by their tokens' losses, and task {recipe.task} has another measure",
                where=f"key evaluation.{key}",
                remedy=f"leave it out; the tasks {listed(lambda task: task.is_language_modeling)} have it",
            )
    if data.validation is None or not data.validation.num_samples:
        if wanted.early_stopping is not None:
            raise InputError(
                "evaluation.early_stopping needs validation rows, and there are none",
                where="key data.validation",
                remedy="set data.validation to a share such as 0.1 or to files, or leave out evaluation.early_stopping",
            )
        if wanted.few_shot:
            raise InputError(
                "evaluation.few_shot needs validation rows, and there are none",
                where="key data.validation",
                remedy="set data.validation to a share such as 0.1 or to files, or leave out evaluation.few_shot",
            )
        return None, "there are no validation rows: what is learned is not measured on held-out rows"
    rows = plural(data.validation.num_rows, "validation row")
    if wanted.every_steps is not None:
        return wanted.every_steps, f"set in the recipe; {rows}, also before the first step and after the last"
    if wanted.early_stopping is not None:
        often = max(1, min(an_epoch, total // 10))
        return often, f"early stopping needs them: once an epoch, at least ten times a run; {rows}"
    return None, f"{rows}, before the first step and after the last"

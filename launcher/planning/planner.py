"""Makes a plan from recipe, model, prepared data and hardware, with a reason for every choice. No torch, no disk."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.configs.plan import BatchFacts, Choice, ComputeFacts, DataFacts, ModelFacts, ParallelismFacts, Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.tasks import listed
from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.adapter_base import adapter_base_choice
from tunesmith.launcher.planning.base_weights import base_weights_choice
from tunesmith.launcher.planning.batching import Batching, choose_batching
from tunesmith.launcher.planning.carried import carried_choice
from tunesmith.launcher.planning.determinism import choose_determinism
from tunesmith.launcher.planning.device import Device, choose_device
from tunesmith.launcher.planning.disk import checkpoint_bytes
from tunesmith.launcher.planning.experts import (
    adapter_choices,
    expert_choices,
    four_bit_choices,
    require_quantizable,
    require_routers,
    router_loss_choices,
)
from tunesmith.launcher.planning.host_memory import choose_host_memory
from tunesmith.launcher.planning.kernel_choice import kernel_choice
from tunesmith.launcher.planning.memory import Footprint, footprint
from tunesmith.launcher.planning.mixture import mixture_choices, sample_noun
from tunesmith.launcher.planning.new_tokens import new_tokens_choice
from tunesmith.launcher.planning.saving import choose_saving
from tunesmith.launcher.planning.sharding import Sharding, choose_sharding, parallelism_facts
from tunesmith.launcher.planning.step_time import Sharded, StepTime, step_time, step_time_choice
from tunesmith.launcher.planning.world import World
from tunesmith.report.wording import count, plural

ALONE = World()


@dataclass(frozen=True)
class OwnConfig:
    """The DeepSpeed configuration of the user: content, and file name for messages."""

    content: dict[str, Any]
    file: str


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
    earlier: Plan | None = None,
) -> Plan:
    """Make the plan of a run. Pure: the same arguments give the same plan.

    hardware: of one node. world, world_choice: the processes, and the reason for their number; memory is estimated for
    the fewest. threads: OMP_NUM_THREADS of the user, if set. recipe_file, working_dir: paths are relative to these.
    installed: whether a package is. own: content of parallelism.deepspeed_config. earlier: plan of a run that is
    resumed: on such a device its precision is kept. Raises InputError if the run does not fit in memory (DoesNotFit),
    or the recipe does not match the data or contradicts itself.
    """
    place = choose_device(recipe, hardware, world, threads, earlier)
    require_trainable(recipe, model, data)
    sharding = choose_sharding(
        recipe,
        model,
        footprint(recipe, model, place.precision != "fp32", place.device, world.min_size),
        longest_tokens=data.train.longest_tokens,
        memory_bytes=place.memory_bytes,
        world_size=world.min_size,
        device=place.device,
        precision=place.precision,
        installed=installed,
        user=own.content if own else None,
    )
    batching = choose_batching(recipe, data, sharding.shape, place.memory_bytes, place.device, world.min_size)
    schedule, schedule_choices = choose_steps(recipe, data, batching)
    sharded = Sharded(sharding.zero_stage, world.size, batching.gradient_checkpointing, place.precision)
    seconds = place.rates and step_time(recipe, model, data.train, schedule, place.rates, sharded)
    spare_bytes, host_choices = spare_memory(sharding.shape, batching, place, world, hardware)
    staging_bytes, saving_choice = choose_saving(recipe, model, spare_bytes)
    deterministic, device_choices = choose_determinism(recipe, model, place.precision, place.capability)
    return Plan(
        tunesmith_version=__version__,
        recipe=recipe,
        recipe_file=str(recipe_file.resolve()) if recipe_file else "",
        working_dir=str(working_dir.resolve()) if working_dir else "",
        model=model,
        data=data,
        batch=schedule,
        compute=compute_facts(place, deterministic, batching, world, checkpoint_bytes(model), staging_bytes, seconds),
        parallelism=_parallelism(sharding, recipe, model, schedule, place, own),
        choices=[
            *place.choices,
            *device_choices,
            kernel_choice(recipe, sharding.zero_stage, place.capability, installed("triton")),
            *([world_choice] if world_choice else []),
            *base_weights_choice(recipe, model, place.precision, sharding.zero_stage),
            *model_choices(recipe, model, sharding.shape),
            *sharding.choices,
            *batching.choices,
            *host_choices,
            *schedule_choices,
            *step_time_choice(seconds, schedule.total_steps),
            saving_choice,
        ],
    )


def _parallelism(
    sharding: Sharding, recipe: Recipe, model: ModelFacts, schedule: BatchFacts, place: Device, own: OwnConfig | None
) -> ParallelismFacts:
    return parallelism_facts(
        sharding,
        recipe,
        model,
        schedule,
        device=place.device,
        precision=place.precision,
        user=own.content if own else None,
        user_file=own.file if own else "",
    )


def spare_memory(
    shape: Footprint, batching: Batching, place: Device, world: World, hardware: Hardware
) -> tuple[int, list[Choice]]:
    """CPU memory that remains for staged checkpoints, and its line of the plan. Raises DoesNotFit if offloaded state
    does not fit."""
    if place.device == "cpu":
        return place.memory_bytes - batching.peak_bytes, []
    return choose_host_memory(shape, batching, per_node=world.per_node, memory_bytes=hardware.memory_bytes)


def compute_facts(
    place: Device,
    deterministic: str,
    batching: Batching,
    world: World,
    checkpoint_size: int,
    staging_bytes: int,
    seconds: StepTime | None,
) -> ComputeFacts:
    """The compute section of the plan. checkpoint_size: bytes of one checkpoint. seconds: of a step; None: unknown."""
    return ComputeFacts(
        device="cuda" if place.device == "cuda" else "cpu",
        precision=place.precision,  # type: ignore[arg-type]
        deterministic=deterministic,  # type: ignore[arg-type]
        gradient_checkpointing=batching.gradient_checkpointing,
        world_size=world.size,
        min_world_size=world.min_size,
        nodes=world.nodes,
        threads_per_rank=place.threads,
        memory_bytes=place.memory_bytes,
        estimated_peak_bytes=batching.peak_bytes,
        checkpoint_bytes=checkpoint_size,
        staging_bytes=staging_bytes,
        estimated_step_s=seconds.total if seconds else None,
    )


def model_choices(recipe: Recipe, model: ModelFacts, shape: Footprint) -> list[Choice]:
    """What is trained, and on which batches of rows."""
    return [
        trained_choice(recipe, model, shape),
        *adapter_choices(recipe, model),
        *expert_choices(model),
        *four_bit_choices(recipe, model),
        *router_loss_choices(recipe, model),
        *new_tokens_choice(recipe, model),
        *carried_choice(model),
        *adapter_base_choice(recipe, model),
        *rows_choice(recipe),
    ]


def trained_choice(recipe: Recipe, model: ModelFacts, shape: Footprint) -> Choice:
    """Number of trained weights, and their memory."""
    bits = "fp32" if recipe.optimization.optimizer == "adamw" else "8 bits"
    return Choice(
        key="trained weights",
        value=f"{count(model.num_trained_params)} of {count(model.num_params)}",
        reason=f"method {recipe.method.kind}; with gradient and two AdamW moments in {bits}",
        num_bytes=shape.gradients + shape.optimizer + 4 * model.num_trained_params,
    )


def rows_choice(recipe: Recipe) -> list[Choice]:
    """How the rows of a forward pass are batched, for tasks without packing; empty for the others."""
    if recipe.task_facts.packs:
        return []
    reason = f"task {recipe.task} counts rows; the rows of a forward pass are concatenated without padding"
    if recipe.task_facts.is_encoder_decoder:
        reason = "encoder-decoder attention does not support concatenated rows: they are padded to the longest row"
    return [Choice(key="packing", value=False, reason=reason)]


def require_trainable(recipe: Recipe, model: ModelFacts, data: DataFacts) -> None:
    """Raise InputError if the model cannot be trained on this data by this recipe."""
    require_positions(recipe, model, data)
    require_unrelated(recipe)
    require_quantizable(recipe, model)
    require_routers(recipe, model)


def require_positions(recipe: Recipe, model: ModelFacts, data: DataFacts) -> None:
    """Raise InputError if a row has more tokens than the model has positions (BERT: 512)."""
    limit = model.max_positions
    if limit is None or recipe.task_facts.is_encoder_decoder:  # source and target have separate positions
        return
    targets = 0
    if recipe.task_facts.is_classifier:
        targets = len(data.labels or []) if recipe.classification.kind == "multi_label" else 1
    longest = max(split.longest_tokens for split in (data.train, data.validation) if split is not None) - targets
    if longest > limit:
        raise InputError(
            f"the longest row has {longest} tokens, but the model has only {limit} positions",
            where="key data.max_seq_len",
            remedy=f"set data.max_seq_len to {limit + targets} or less, and data.too_long to truncate or drop",
        )


def require_unrelated(recipe: Recipe) -> None:
    """Raise InputError if the loss pairs prompts with the answers of other rows of a batch, but a batch has one row."""
    if recipe.task_facts.needs_unrelated and recipe.optimization.global_batch_size < 2:
        raise InputError(
            f"task {recipe.task} compares each row with other rows of the batch, but the batch has only one row",
            where="key optimization.global_batch_size",
            remedy="set it to 2 or more; 16 is typical",
        )


def choose_steps(recipe: Recipe, data: DataFacts, batching: Batching) -> tuple[BatchFacts, list[Choice]]:
    """Choose the number of steps, and the steps of warmup, checkpoints and evaluations, from the number of samples."""
    optimization = recipe.optimization
    samples, batch = data.samples_per_epoch, optimization.global_batch_size
    noun = plural(samples, sample_noun(recipe))
    planned = math.ceil(samples * optimization.epochs / batch)
    total = min(planned, optimization.max_steps or planned)
    why = f"{noun} x {plural(optimization.epochs, 'epoch')} / {batch} per step, rounded up"
    if total < planned:
        why = f"max_steps; {why} would be {count(planned)}"
    an_epoch = max(1, math.ceil(samples / batch))
    # Rounded first: 0.07 * 100 is slightly more than 7 in floating point. At least one step has the full rate.
    warmup = min(math.ceil(round(optimization.warmup_fraction * total, 9)), total - 1)
    checkpoint, checkpoint_why = recipe.checkpoint.every_steps, "set in the recipe"
    if checkpoint is None:
        checkpoint, checkpoint_why = min(an_epoch, total), "once per epoch"
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
        *mixture_choices(recipe, data),
        Choice(key="total_steps", value=total, reason=why),
        Choice(
            key="warmup_steps", value=warmup, reason=f"warmup_fraction {optimization.warmup_fraction:g} of all steps"
        ),
        Choice(key="checkpoint_every_steps", value=checkpoint, reason=f"{checkpoint_why}; {kept} are kept"),
        Choice(key="evaluation_every_steps", value=evaluation or "–", reason=evaluation_why),
    ]
    return steps, choices


def _choose_evaluation(recipe: Recipe, data: DataFacts, an_epoch: int, total: int) -> tuple[int | None, str]:
    evaluation = recipe.evaluation
    for key, value in (("retain", evaluation.retain), ("few_shot", evaluation.few_shot)):
        if value and not recipe.task_facts.is_language_modeling:
            raise InputError(
                f"evaluation.{key} compares models by token loss, which task {recipe.task} does not have",
                where=f"key evaluation.{key}",
                remedy=f"remove it; it is supported by {listed(lambda task: task.is_language_modeling)}",
            )
    if data.validation is None or not data.validation.num_samples:
        if evaluation.early_stopping is not None:
            raise InputError(
                "evaluation.early_stopping needs validation rows, but there are none",
                where="key data.validation",
                remedy="set data.validation to a fraction such as 0.1 or to files, or remove evaluation.early_stopping",
            )
        if evaluation.few_shot:
            raise InputError(
                "evaluation.few_shot needs validation rows, but there are none",
                where="key data.validation",
                remedy="set data.validation to a fraction such as 0.1 or to files, or remove evaluation.few_shot",
            )
        return None, "no validation rows: the run is not evaluated on held-out rows"
    rows = plural(data.validation.num_rows, "validation row")
    if evaluation.every_steps is not None:
        return evaluation.every_steps, f"set in the recipe; {rows}, also before the first step and after the last"
    if evaluation.early_stopping is not None:
        every_steps = max(1, min(an_epoch, total // 10))
        return every_steps, f"for early stopping: once per epoch, at least ten times per run; {rows}"
    return None, f"{rows}, before the first step and after the last"

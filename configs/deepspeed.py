"""Build DeepSpeed's configuration from the plan, and merge a user's file into it.

A user's file may tune what the recipe has no key for (bucket sizes, thresholds, pinned memory, logging). Values that
the recipe or the plan decides must agree with them or be "auto". Any other key is rejected: this engine does
accumulation, scaling and checkpoints itself, and DeepSpeed's other features would change the numbers.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tunesmith.configs.plan import ParallelismFacts
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.configs.sections.processes import Parallelism
from tunesmith.errors import InputError

BUCKET_ELEMENTS = 50_000_000
"""Elements per reduction. DeepSpeed's default is ten times as large: a buffer of 2 GB in fp32."""

_TUNING = {
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "communication_data_type", "aio"),
    *("comms_logger", "flops_profiler"),
}
_ZERO_TUNING = {
    *("overlap_comm", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "allgather_bucket_size"),
    *("allgather_partitions", "use_multi_rank_bucket_allreduce", "round_robin_gradients", "parameter_alignment"),
    *("sub_group_size", "memory_efficient_linear", "ignore_unused_parameters", "log_trace_cache_warnings"),
    *("enable_sanity_checks", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
    *("stage3_model_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
    *("stage3_module_granularity_threshold", "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"),
    "stage3_gather_16bit_weights_on_model_save",
}
_OFFLOAD_TUNING = {"pin_memory", "buffer_count", "buffer_size", "max_in_cpu", "pipeline_read", "pipeline_write"}
_SCHEDULERS = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Numbers:
    """The plan's values that DeepSpeed's configuration depends on."""

    micro_batch_size: int
    grad_accum_steps: int
    num_trained_params: int
    precision: str
    trains_base: bool
    """Whether weights of the base model are trained. If so, a bf16 run keeps them in bf16 with fp32 master weights; in
    fp16 they stay fp32, and products are autocast."""
    device: str


def deepspeed_config(
    parallelism: ParallelismFacts,
    optimization: Optimization,
    numbers: Numbers,
    *,
    nvme_path: str | None = None,
    user: Mapping[str, object] | None = None,
    user_file: str = "",
) -> dict[str, object]:
    """Build the complete configuration. user: the content of the user's file.

    Raises InputError if the user's file contradicts the recipe (naming both keys) or has an unsupported key.
    """
    config = _own_config(parallelism, optimization, numbers, nvme_path)
    if user is not None:
        decided = _decided(parallelism, optimization, numbers, nvme_path)
        for keys, value in _leaves(user):
            if value == "auto":
                continue
            if keys in decided:
                _require_equal(keys, value, *decided[keys], user_file)
            elif _is_tuning(keys):
                _set(config, keys, value)
            else:
                raise _unsupported(keys, user_file, decided)
    return config


def adopt(recipe: Parallelism, user: Mapping[str, object]) -> Parallelism:
    """Return the recipe's section with its unset keys filled from the user's file."""
    zero = user.get("zero_optimization")
    if not isinstance(zero, Mapping):
        return recipe
    values: dict[str, Any] = {"zero_stage": zero.get("stage")}
    for key, section in (("offload_optimizer", "offload_optimizer"), ("offload_params", "offload_param")):
        part = zero.get(section)
        if isinstance(part, Mapping):
            values[key] = part.get("device")
            values.setdefault("nvme_path", part.get("nvme_path"))
    adopted = {key: value for key, value in values.items() if value not in (None, "auto") and not _is_set(recipe, key)}
    return Parallelism.model_validate({**recipe.model_dump(), **adopted})


def _is_set(recipe: Parallelism, key: str) -> bool:
    return key in recipe.model_fields_set and getattr(recipe, key) != "auto"


def _own_config(
    parallelism: ParallelismFacts, optimization: Optimization, numbers: Numbers, nvme_path: str | None
) -> dict[str, object]:
    on_gpu = numbers.device == "cuda"
    bucket = max(1, min(BUCKET_ELEMENTS, numbers.num_trained_params))
    zero: dict[str, Any] = {
        "stage": parallelism.zero_stage,
        "overlap_comm": on_gpu and parallelism.zero_stage > 1,  # stage 1 reduces after the last backward pass
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket + bucket % 2,
    }
    devices = {"offload_optimizer": parallelism.offload_optimizer, "offload_param": parallelism.offload_params}
    for section, device in devices.items():
        if device != "none":
            zero[section] = {"device": device, "pin_memory": on_gpu}
            if device == "nvme":
                zero[section]["nvme_path"] = nvme_path
    config: dict[str, object] = {
        "train_micro_batch_size_per_gpu": numbers.micro_batch_size,
        "gradient_accumulation_steps": numbers.grad_accum_steps,
        "gradient_clipping": optimization.max_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if numbers.precision == "bf16" and numbers.trains_base:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config


def _decided(
    parallelism: ParallelismFacts, optimization: Optimization, numbers: Numbers, nvme_path: str | None
) -> dict[Keys, tuple[Any, str]]:
    """DeepSpeed keys that the recipe or the plan decides: their values, and the recipe's key."""
    zero = "zero_optimization"
    decided: dict[Keys, tuple[Any, str]] = {
        ("train_batch_size",): (optimization.global_batch_size, "optimization.global_batch_size"),
        ("train_micro_batch_size_per_gpu",): (numbers.micro_batch_size, "optimization.micro_batch_size"),
        ("gradient_accumulation_steps",): (numbers.grad_accum_steps, "optimization.micro_batch_size"),
        ("gradient_clipping",): (optimization.max_grad_norm or 0.0, "optimization.max_grad_norm"),
        ("bf16", "enabled"): (numbers.precision == "bf16", "precision"),
        ("fp16", "enabled"): (numbers.precision == "fp16", "precision"),
        (zero, "stage"): (parallelism.zero_stage, "parallelism.zero_stage"),
        (zero, "offload_optimizer", "device"): (parallelism.offload_optimizer, "parallelism.offload_optimizer"),
        (zero, "offload_optimizer", "nvme_path"): (nvme_path, "parallelism.nvme_path"),
        (zero, "offload_param", "device"): (parallelism.offload_params, "parallelism.offload_params"),
        (zero, "offload_param", "nvme_path"): (nvme_path, "parallelism.nvme_path"),
        ("optimizer", "type"): ("AdamW", "optimization.optimizer"),
        ("optimizer", "params", "lr"): (optimization.learning_rate, "optimization.learning_rate"),
        ("optimizer", "params", "betas"): (list(optimization.betas), "optimization.betas"),
        ("optimizer", "params", "eps"): (optimization.eps, "optimization.eps"),
        ("optimizer", "params", "weight_decay"): (optimization.weight_decay, "optimization.weight_decay"),
        ("scheduler", "type"): (optimization.schedule, "optimization.schedule"),
    }
    return decided


def _require_equal(keys: Keys, value: Any, decided: Any, recipe_key: str, user_file: str) -> None:
    expected = _SCHEDULERS.get(value, value) if keys == ("scheduler", "type") else value
    if expected != decided:
        raise InputError(
            f"{'.'.join(keys)} is {json.dumps(value)} in the DeepSpeed configuration, and {recipe_key} is "
            f"{json.dumps(decided)}",
            where=user_file,
            remedy=f'set {recipe_key} to the intended value and {".".join(keys)} to "auto" (or remove it)',
        )


def _is_tuning(keys: Keys) -> bool:
    if keys[0] != "zero_optimization":
        # fp16 scaling and scheduler parameters are never used; accepted since files for other trainers contain them.
        return keys[0] in _TUNING or (keys[0] in ("fp16", "scheduler") and len(keys) > 1)
    if len(keys) == 3 and keys[1] in ("offload_optimizer", "offload_param"):
        return keys[2] in _OFFLOAD_TUNING
    return len(keys) == 2 and keys[1] in _ZERO_TUNING


def _set(config: dict[str, object], keys: Keys, value: object) -> None:
    if keys[0] in ("fp16", "scheduler"):
        return
    for key in keys[:-1]:
        section = config.setdefault(key, {})
        assert isinstance(section, dict)
        config = section
    config[keys[-1]] = value


def _leaves(values: Mapping[str, object], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _unsupported(keys: Keys, user_file: str, decided: Mapping[Keys, Any]) -> InputError:
    known = [*_TUNING, *_ZERO_TUNING, *_OFFLOAD_TUNING, *(key[-1] for key in decided)]
    nearest = get_close_matches(keys[-1], known, n=1)
    return InputError(
        f"the DeepSpeed key {'.'.join(keys)} is not supported",
        where=user_file,
        remedy=(f"did you mean {nearest[0]}? " if nearest and nearest[0] != keys[-1] else "")
        + "remove it: Tunesmith handles accumulation, precision, schedule and checkpoints itself",
    )

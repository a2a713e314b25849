"""Convert sharding: a DeepSpeed configuration file (or the same inline), or FSDP options, become ZeRO stages."""

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.configs.migration.draft import Draft

_FSDP = {
    "full_shard": 3,
    "hybrid_shard": 3,
    "shard_grad_op": 2,
    "hybrid_shard_zero2": 2,
    "no_shard": 0,
}
_OWN = "the configuration's own optimizer, schedule, precision and batch size are used"
_BUCKETS = "buckets and thresholds: the plan chooses them; parallelism.deepspeed_config has more"
_DECIDED = {
    *("optimizer", "scheduler", "fp16", "bf16", "gradient_clipping", "gradient_accumulation_steps"),
    *("train_batch_size", "train_micro_batch_size_per_gpu"),
}
"""Sections of a DeepSpeed file whose values transformers requires to agree with the configuration."""
_OTHER = "options of DeepSpeed that the recipe does not need; parallelism.deepspeed_config takes a file for tuning"
_CARRIED = ("stage", "offload_optimizer", "offload_param")


def convert_deepspeed(draft: Draft, key: str = "deepspeed") -> None:
    """Convert ZeRO stage and offloading of a DeepSpeed configuration. key: the source key with its path or content."""
    given = draft.source.get(key)
    if not given:
        return
    config = given if isinstance(given, Mapping) else _read(draft, key, str(given))
    if config is None:
        return
    if not isinstance(config.get("zero_optimization") or {}, Mapping):
        draft.fail(key, f"zero_optimization of `{key}` is not a section", "it has the ZeRO stage")
        return
    zero = config.get("zero_optimization") or {}
    name = "its content" if isinstance(given, Mapping) else "zero_optimization.stage of that file"
    draft.set("parallelism.zero_stage", zero.get("stage", 0), key, note=name)
    for section, recipe_key in (("offload_optimizer", "offload_optimizer"), ("offload_param", "offload_params")):
        given_part = zero.get(section)
        part: Mapping[str, Any] = given_part if isinstance(given_part, Mapping) else {}
        device = part.get("device", "none")
        if device != "none":
            draft.set(f"parallelism.{recipe_key}", device, key)
            if device == "nvme":
                draft.set("parallelism.nvme_path", part.get("nvme_path"), key)
    reasons = (
        (sorted(name for name in zero if name not in _CARRIED), _BUCKETS),
        (sorted(name for name in config if name in _DECIDED), _OWN),
        (sorted(name for name in config if name not in _DECIDED and name != "zero_optimization"), _OTHER),
    )
    for names, reason in reasons:
        if names:
            draft.drop(key, f"{', '.join(names)}: {reason}")


def _read(draft: Draft, key: str, name: str) -> Mapping[str, Any] | None:
    path = draft.source.find(name)
    if path is None or not path.is_file():
        tried = ", ".join(str(folder) for folder in draft.source.folders())
        remedy = f"copy it to the configuration; {name} was looked up in {tried}"
        draft.fail(key, f"the DeepSpeed file {name} does not exist, so its ZeRO stage is unknown", remedy)
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        draft.fail(key, f"the DeepSpeed file is not valid JSON: {error}", "correct it", place=str(path))
        return None
    if not isinstance(config, Mapping) or not isinstance(config.get("zero_optimization") or {}, Mapping):
        remedy = "its zero_optimization section has the ZeRO stage"
        draft.fail(key, "the DeepSpeed file is not a JSON object", remedy, place=str(path))
        return None
    return config


def convert_fsdp(draft: Draft) -> None:
    """Convert FSDP: full sharding is ZeRO stage 3, sharded gradients and optimizer state stage 2."""
    given, config = draft.source.get("fsdp"), draft.source.get("fsdp_config")
    options: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    if not given and not options:
        return
    words = given.replace(",", " ").split() if isinstance(given, str) else given if isinstance(given, list) else []
    stages = [_FSDP[word] for word in map(str, words) if word in _FSDP]
    reshards = options.get("reshard_after_forward", True) not in (False, "false", "SHARD_GRAD_OP")
    stage = stages[0] if stages else 3 if reshards else 2
    draft.set("parallelism.zero_stage", stage, "fsdp", "fsdp_config", note=f"ZeRO stage {stage} shards the same")
    offloads = "offload" in words or options.get("offload_params") in (True, "true")
    if offloads and stage == 3:
        draft.set("parallelism.offload_params", "cpu", "fsdp", "fsdp_config")
        draft.set("parallelism.offload_optimizer", "cpu", "fsdp", "fsdp_config", note="FSDP offloads both")
    if options:
        draft.drop("fsdp_config", "wrapping, prefetching and state-dict options of FSDP: sharding is done by DeepSpeed")

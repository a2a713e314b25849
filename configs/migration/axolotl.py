"""Axolotl: its training configuration becomes a recipe."""

from pathlib import Path

from tunesmith.configs.migration.adapters import AdapterKeys, convert_lora, convert_modules
from tunesmith.configs.migration.axolotl_data import convert_data_sets
from tunesmith.configs.migration.draft import Draft
from tunesmith.configs.migration.intervals import convert_evaluation, convert_saving
from tunesmith.configs.migration.optimization import (
    convert_batch,
    convert_betas,
    convert_clipping,
    convert_length,
    convert_optimizer,
    convert_precision,
    convert_schedule,
    convert_warmup,
)
from tunesmith.configs.migration.sharding import convert_deepspeed, convert_fsdp
from tunesmith.configs.tasks import TASKS

LOSSES = {"dpo": "dpo", "ipo": "ipo", "orpo": "orpo"}
_LORA = AdapterKeys("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "peft_use_rslora", "peft_use_dora")
_TOO_LONG = {"drop": "drop", "truncate": "truncate", "raise": "error"}


def convert(draft: Draft, recipe_dir: Path, gpus: int | None) -> None:
    """Convert a configuration. recipe_dir: where the recipe will be. gpus: number of GPUs if given as an argument."""
    source = draft.source
    draft.copy("base_model", "model.base")
    revision = source.first("revision_of_model", "model_revision")
    draft.copy(revision, "model.revision")
    convert_data_sets(draft, recipe_dir)
    _convert_preferences(draft)
    _convert_method(draft)
    _convert_lengths(draft)
    _convert_optimization(draft, gpus)
    _convert_memory(draft)
    convert_precision(draft, ("bf16", "bfloat16"), ("fp16", "float16"), ("float32",))
    convert_deepspeed(draft)
    convert_fsdp(draft)
    _convert_intervals(draft)
    draft.copy("seed", "seed", 42)


def _convert_preferences(draft: Draft) -> None:
    source = draft.source
    rl = source.get("rl")
    if rl is None:
        return
    beta = source.first("rl_beta", "dpo_beta")
    if rl == "kto":
        draft.copy(beta, "kto.beta", 0.1)
        draft.copy("kto_desirable_weight", "kto.desirable_weight")
        draft.copy("kto_undesirable_weight", "kto.undesirable_weight")
        return
    loss = str(rl)
    if loss == "dpo" and source.has("dpo_loss_type"):
        given = source.get("dpo_loss_type")
        names = [str(name) for name in (given if isinstance(given, list) else [given])]
        loss = {"sigmoid": "dpo", "ipo": "ipo"}.get(names[0], names[0]) if len(names) == 1 else str(names)
    if loss not in LOSSES:
        draft.choose("rl", loss, (*LOSSES, "kto"), "supported are")
        return
    draft.set("preference.loss", LOSSES[loss], "rl", "dpo_loss_type")
    beta = "orpo_alpha" if loss == "orpo" and source.has("orpo_alpha") else beta
    draft.copy(beta, "preference.beta", 0.1)


def _convert_method(draft: Draft) -> None:
    source = draft.source
    adapter = source.get("adapter")
    if adapter is None:
        draft.set("method.kind", "full", "adapter", note="no adapter: every weight")
        if source.get("load_in_4bit") or source.get("load_in_8bit"):
            what = "quantized weights are trained with an adapter only"
            draft.fail("load_in_4bit", what, "set adapter: qlora, or remove load_in_4bit and load_in_8bit")
        return
    if adapter not in ("lora", "qlora"):
        draft.choose("adapter", adapter, ("lora", "qlora"), "supported are")
        return
    quantized = adapter == "qlora" or bool(source.get("load_in_4bit"))
    keys = ("adapter", "load_in_4bit")
    if not source.has("lora_alpha"):
        draft.fail("lora_alpha", "the key `lora_alpha` is missing", "add it: Axolotl has no default")
    convert_lora(draft, _LORA, "qlora" if quantized else "lora", keys)
    if source.get("load_in_8bit") and not quantized:
        draft.drop("load_in_8bit", "the frozen weights stay in 16 or 32 bits; adapter: qlora loads them in 4 bits")
    if source.get("lora_target_linear"):
        draft.set("method.target_modules", "all-linear", "lora_target_linear", "lora_target_modules")
    elif source.has("lora_target_modules"):
        convert_modules(draft, "lora_target_modules", source.get("lora_target_modules"), "all-linear")
    else:
        remedy = "set lora_target_linear: true, or list lora_target_modules"
        draft.fail("lora_target_modules", "the modules with an adapter are not given", remedy)
    draft.copy("lora_model_dir", "method.start_from")


def _convert_lengths(draft: Draft) -> None:
    source = draft.source
    draft.copy("sequence_len", "data.max_seq_len", 512)
    strategy = str(source.get("excess_length_strategy", "drop")).lower()
    if "task" in draft.settings and not TASKS[draft.settings["task"].value].has_prompt:
        note = "pretraining and completion rows are split"
        draft.set("data.too_long", "split", "sequence_len", "excess_length_strategy", note=note)
    elif strategy in _TOO_LONG:
        draft.set("data.too_long", _TOO_LONG[strategy], "excess_length_strategy")
    else:
        draft.choose("excess_length_strategy", strategy, _TOO_LONG, "its values are")
    draft.copy("sample_packing", "data.packing", False)
    if source.get("dataset_exact_deduplication"):
        draft.set("data.duplicates", "drop", "dataset_exact_deduplication")


def _convert_optimization(draft: Draft, gpus: int | None) -> None:
    source = draft.source
    convert_optimizer(draft, "optimizer", "adamw_torch_fused")
    if source.has("learning_rate"):
        draft.copy("learning_rate", "optimization.learning_rate")
    else:
        draft.fail("learning_rate", "the key `learning_rate` is missing", "add it: Axolotl has no default")
    convert_schedule(draft, "lr_scheduler", "cosine", "lr_scheduler_kwargs")
    if source.get("cosine_min_lr_ratio"):
        draft.copy("cosine_min_lr_ratio", "optimization.min_learning_rate_fraction")
    convert_warmup(draft, "warmup_ratio", "warmup_steps", default=0.03)
    draft.copy("weight_decay", "optimization.weight_decay", 0.0)
    convert_betas(draft, "adam_beta1", "adam_beta2")
    draft.copy("adam_epsilon", "optimization.eps")
    convert_clipping(draft, "max_grad_norm")
    draft.copy(source.first("neftune_noise_alpha", "noisy_embedding_alpha"), "optimization.neftune_alpha")
    convert_length(draft, "num_epochs", 1.0)
    workers = draft.whole("ray_num_workers", 1) if source.get("use_ray") else None
    if workers is not None and gpus is None:
        draft.set("resources.workers", workers, "ray_num_workers", "use_ray")
    from_ray = "ray_num_workers" if workers is not None and gpus is None else ""
    _convert_batch(draft, gpus or workers or 1, from_ray)


def _convert_batch(draft: Draft, gpus: int, gpus_key: str) -> None:
    source = draft.source
    if not source.has("batch_size") or source.has("gradient_accumulation_steps"):
        convert_batch(draft, "micro_batch_size", "gradient_accumulation_steps", 1, gpus, gpus_key)
        if source.has("batch_size"):
            draft.drop("batch_size", "micro_batch_size and gradient_accumulation_steps decide")
        return
    micro, whole = draft.whole("micro_batch_size", 1), draft.whole("batch_size", 1)
    if micro is not None and whole is not None:
        note = f"{whole} per GPU x {gpus} {'GPU' if gpus == 1 else 'GPUs'}"
        draft.set("optimization.global_batch_size", whole // micro * micro * gpus, "batch_size", note=note)
        draft.set("optimization.micro_batch_size", micro, "micro_batch_size")


def _convert_memory(draft: Draft) -> None:
    source = draft.source
    checkpointing = source.get("gradient_checkpointing")
    offload = checkpointing in ("offload", "offload_disk")
    if checkpointing is not None:
        draft.set("optimization.gradient_checkpointing", bool(checkpointing), "gradient_checkpointing")
    given = source.get("activation_offloading")
    if offload or given:
        key = "gradient_checkpointing" if offload else "activation_offloading"
        note = "to CPU memory" if "disk" in str(checkpointing if offload else given) else ""
        draft.set("optimization.offload_activations", True, key, note=note)


def _convert_intervals(draft: Draft) -> None:
    source = draft.source
    has_validation = "data.validation" in draft.settings
    saves = source.get("saves_per_epoch")
    if saves == 1:
        draft.set("checkpoint.every_steps", None, "saves_per_epoch", note="once per epoch")
    elif saves:
        steps = f"the steps of an epoch, which `tunesmith plan` shows, divided by {saves}"
        draft.drop("saves_per_epoch", f"set checkpoint.every_steps to {steps}; until then once per epoch")
    if not saves or source.has("save_steps"):
        convert_saving(draft, default_steps=None if saves else 500)
    draft.copy("save_total_limit", "checkpoint.keep_last", 4)
    evaluations = source.get("evals_per_epoch")
    if evaluations and not has_validation:
        draft.drop("evals_per_epoch", "there are no validation rows")
    elif evaluations:
        steps = f"the steps of an epoch, which `tunesmith plan` shows, divided by {evaluations}"
        draft.drop("evals_per_epoch", f"set evaluation.every_steps to {steps}")
    else:
        convert_evaluation(draft, has_validation=has_validation)
    if source.get("early_stopping_patience"):
        draft.copy("early_stopping_patience", "evaluation.early_stopping.patience")

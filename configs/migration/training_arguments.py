"""Convert what LLaMA-Factory and trl have in common: transformers' TrainingArguments."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Defaults:
    """A tool's defaults that differ from transformers'."""

    learning_rate: float = 5.0e-5


def convert_training_arguments(draft: Draft, gpus: int, gpus_key: str = "", defaults: Defaults | None = None) -> None:
    """Convert the keys of TrainingArguments. gpus: number of GPUs; gpus_key: source key that it comes from, if any."""
    defaults = defaults or Defaults()
    convert_optimizer(draft, "optim", "adamw_torch")
    draft.copy("learning_rate", "optimization.learning_rate", defaults.learning_rate)
    convert_schedule(draft, "lr_scheduler_type", "linear", "lr_scheduler_kwargs")
    convert_warmup(draft, "warmup_ratio", "warmup_steps")
    draft.copy("weight_decay", "optimization.weight_decay", 0.0)
    convert_betas(draft, "adam_beta1", "adam_beta2")
    draft.copy("adam_epsilon", "optimization.eps")
    convert_clipping(draft, "max_grad_norm")
    convert_batch(draft, "per_device_train_batch_size", "gradient_accumulation_steps", 8, gpus, gpus_key)
    convert_length(draft, "num_train_epochs", 3.0)
    for key, recipe_key in (
        ("label_smoothing_factor", "optimization.label_smoothing"),
        ("neftune_noise_alpha", "optimization.neftune_alpha"),
    ):
        if draft.source.get(key):
            draft.copy(key, recipe_key)
    convert_precision(draft, ("bf16",), ("fp16",))
    convert_deepspeed(draft)
    convert_fsdp(draft)
    convert_saving(draft, default_steps=500)
    draft.copy("seed", "seed", 42)
    if draft.source.get("full_determinism"):
        draft.set("deterministic", "strict", "full_determinism")
    for key in ("use_cpu", "no_cuda"):
        if draft.source.get(key):
            draft.set("resources.gpus_per_node", 0, key)


def convert_evaluation_arguments(draft: Draft) -> None:
    """Convert when a run evaluates; the validation rows must have been converted."""
    convert_evaluation(draft, has_validation="data.validation" in draft.settings)

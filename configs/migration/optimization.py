"""Convert optimizer, schedule, warmup, batch size and length of training, which the tools share under various names."""

from collections.abc import Mapping
from typing import Any

from tunesmith.configs.migration.draft import Draft
from tunesmith.configs.yaml_tree import as_number

OPTIMIZERS = {
    **dict.fromkeys(
        ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_anyprecision"), "adamw"
    ),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit"), "adamw_8bit"),
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adamw_torch_4bit": "adamw_8bit",
    "paged_adamw": "adamw",
    "paged_adamw_32bit": "adamw",
}
"""transformers' names of AdamW, with the recipe's optimizer."""
_OPTIMIZER_NOTES = {
    "adamw_torch_4bit": "8-bit moments: the smallest that a recipe has",
    "paged_adamw": "fp32 moments are not paged; paged_adamw_8bit is",
    "paged_adamw_32bit": "fp32 moments are not paged; paged_adamw_8bit is",
}
SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine",
}
_OTHER_SCHEDULES = {
    "cosine_with_restarts": ("cosine", "one cosine cycle without restarts"),
    "polynomial": ("linear", "linear decay: the polynomial of power 1"),
    "inverse_sqrt": ("cosine", "cosine decay instead of 1/sqrt(step)"),
    "reduce_lr_on_plateau": ("cosine", "cosine decay: the schedule is a function of the step"),
    "warmup_stable_decay": ("cosine", "cosine decay without a constant phase"),
    "cosine_warmup_with_min_lr": ("cosine", "linear warmup, then cosine decay"),
    "rex": ("cosine", "cosine decay instead of REX"),
    "one_cycle": ("cosine", "linear warmup, then cosine decay"),
}
"""Schedules without equivalent: the nearest one, and the difference."""


def convert_optimizer(draft: Draft, key: str, default: str) -> None:
    """Convert the name of the optimizer."""
    name = str(draft.source.get(key, default)).removeprefix("OptimizerNames.").lower()
    if name not in OPTIMIZERS:
        draft.choose(key, name, OPTIMIZERS, "its learning rate means something else with AdamW; supported are")
        return
    draft.set("optimization.optimizer", OPTIMIZERS[name], key, note=_OPTIMIZER_NOTES.get(name, ""))


def convert_schedule(draft: Draft, key: str, default: str, options_key: str = "") -> None:
    """Convert the schedule. options_key: key of transformers' lr_scheduler_kwargs."""
    name = str(draft.source.get(key, default)).removeprefix("SchedulerType.").lower()
    if name in SCHEDULES:
        draft.set("optimization.schedule", SCHEDULES[name], key)
    elif name in _OTHER_SCHEDULES:
        nearest, difference = _OTHER_SCHEDULES[name]
        draft.set("optimization.schedule", nearest, key, note=difference)
        draft.drop(key, f"the schedule {name}; the recipe has {difference}")
    else:
        draft.choose(key, name, SCHEDULES, "supported are")
    options = draft.source.get(options_key, {}) if options_key else {}
    if isinstance(options, Mapping) and options:
        _schedule_options(draft, options_key, options)


def _schedule_options(draft: Draft, key: str, options: Mapping[str, Any]) -> None:
    rate = draft.source.get("learning_rate")
    for name, written in options.items():
        number = as_number(draft.source.tree.plain.get((key, name), ""))
        value = written if number is None else number
        if name == "min_lr_rate":
            draft.set("optimization.min_learning_rate_fraction", value, key)
        elif name == "min_lr" and isinstance(value, (int, float)) and isinstance(rate, (int, float)) and rate > 0:
            draft.set("optimization.min_learning_rate_fraction", value / rate, key, note="min_lr / learning_rate")
        else:
            draft.drop(key, f"{name}: the recipe's schedules have no such option")


def convert_warmup(draft: Draft, ratio_key: str, steps_key: str, default: float = 0.0) -> None:
    """Convert warmup given as a fraction or as steps; a number of steps below 1 is a fraction, as in transformers 5."""
    steps, ratio = draft.number(steps_key, 0), draft.number(ratio_key, 0)
    if steps is None or ratio is None:
        return
    max_steps = draft.source.get("max_steps", 0)
    key = "optimization.warmup_fraction"
    if str(draft.source.get(draft.source.first("lr_scheduler_type", "lr_scheduler"), "")) == "constant":
        draft.set(key, 0.0, ratio_key, steps_key, note="the constant schedule has no warmup")
    elif 0 < steps < 1:
        draft.set(key, steps, steps_key)
    elif steps >= 1 and isinstance(max_steps, int) and max_steps > 0:
        draft.set(key, min(steps / max_steps, 0.99), steps_key, "max_steps", note=f"{int(steps)} of {max_steps} steps")
    elif steps >= 1:
        reason = f"the number of steps is known after the rows are counted; set {key} to {int(steps)} divided by the "
        draft.drop(steps_key, reason + "steps that `tunesmith plan` shows; until then the recipe's default applies")
    elif draft.source.has(ratio_key):
        draft.set(key, ratio, ratio_key)
    else:
        draft.set(key, default, ratio_key, steps_key)


def convert_batch(draft: Draft, micro_key: str, accumulation_key: str, default: int, gpus: int, gpus_key: str) -> None:
    """Convert the batch size per GPU. gpus: number of GPUs; gpus_key: source key, or empty for the argument."""
    micro, accumulation = draft.whole(micro_key, default), draft.whole(accumulation_key, 1)
    if micro is None or accumulation is None:
        return
    note = f"{micro} per GPU x {accumulation} accumulated x {gpus} {'GPU' if gpus == 1 else 'GPUs'}"
    if not gpus_key:
        note += " (--gpus)"
    keys = (micro_key, accumulation_key, *([gpus_key] if gpus_key else []))
    draft.set("optimization.global_batch_size", micro * accumulation * gpus, *keys, note=note)
    draft.set("optimization.micro_batch_size", micro, micro_key)


def convert_length(draft: Draft, epochs_key: str, default: float) -> None:
    """Convert epochs and max_steps. Where both are given, max_steps decides in these tools, over as many epochs as
    needed."""
    max_steps = draft.source.get("max_steps", -1)
    if isinstance(max_steps, (int, float)) and max_steps > 0:
        draft.set("optimization.max_steps", int(max_steps), "max_steps")
        note = "an upper limit: max_steps ends the run"
        draft.set("optimization.epochs", int(max_steps), "max_steps", epochs_key, note=note)
        return
    epochs = draft.number(epochs_key, default)
    if epochs is None:
        return
    if epochs != int(epochs) or epochs < 1:
        draft.fail(epochs_key, f"`{epochs_key}: {epochs}` is not a whole number", "round it, or set max_steps instead")
        return
    draft.set("optimization.epochs", int(epochs), epochs_key)


def convert_betas(draft: Draft, first: str, second: str) -> None:
    """Convert AdamW's coefficients, if the file sets one of them."""
    if draft.source.has(first) or draft.source.has(second):
        values = [draft.source.get(first, 0.9), draft.source.get(second, 0.999)]
        draft.set("optimization.betas", values, first, second)


def convert_clipping(draft: Draft, key: str) -> None:
    """Convert max_grad_norm; 0 means no clipping."""
    value = draft.number(key, 1.0)
    if value is not None:
        draft.set("optimization.max_grad_norm", value if value > 0 else None, key)


def convert_precision(draft: Draft, bf16: tuple[str, ...], fp16: tuple[str, ...], fp32: tuple[str, ...] = ()) -> None:
    """Convert switches of the precision, each given by its names. `auto`: the plan decides."""
    for precision, names in (("bf16", bf16), ("fp16", fp16), ("fp32", fp32)):
        for name in names:
            value = draft.source.get(name)
            if value in (True, "true", "full"):
                draft.set("precision", precision, name)
                return
    auto = next((name for name in (*bf16, *fp16) if draft.source.get(name) == "auto"), None)
    if auto:
        draft.set("precision", "auto", auto)
    elif any(draft.source.get(name) is False for name in bf16):
        draft.set("precision", "fp32", *bf16, *fp16)

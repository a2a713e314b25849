"""LLaMA-Factory: its training configuration becomes a recipe."""

from pathlib import Path

from tunesmith.configs.migration.adapters import AdapterKeys, convert_lora, convert_modules
from tunesmith.configs.migration.draft import Draft
from tunesmith.configs.migration.llama_factory_data import convert_data_sets
from tunesmith.configs.migration.training_arguments import convert_evaluation_arguments, convert_training_arguments
from tunesmith.configs.tasks import TASKS

STAGES = {"sft": "chat", "pt": "text", "dpo": "preference", "kto": "kto"}
_REFUSED_STAGES = {"rm": "training a reward model", "ppo": "online reinforcement learning (PPO)"}
LOSSES = {"sigmoid": "dpo", "ipo": "ipo", "orpo": "orpo"}
_LORA = AdapterKeys("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora")


def convert(draft: Draft, recipe_dir: Path, gpus: int | None) -> None:
    """Convert a configuration. recipe_dir: where the recipe will be. gpus: number of GPUs if given as an argument."""
    source = draft.source
    draft.copy("model_name_or_path", "model.base")
    if source.get("model_revision", "main") != "main":
        draft.copy("model_revision", "model.revision")
    stage = str(source.get("stage", "sft"))
    if stage in _REFUSED_STAGES:
        remedy = "its stages sft, pt, dpo and kto have an equivalent; dpo and kto learn from the same preferences"
        draft.fail("stage", f"stage {stage}, {_REFUSED_STAGES[stage]}, has no equivalent", remedy)
    elif stage not in STAGES:
        draft.choose("stage", stage, STAGES, "supported are")
    task = STAGES.get(stage, "chat")
    _convert_task(draft, task)
    _convert_method(draft)
    convert_data_sets(draft, task, recipe_dir)
    _convert_lengths(draft, stage)
    workers = draft.whole("ray_num_workers", 1) if source.has("ray_num_workers") else None
    if workers is not None and gpus is None:
        draft.set("resources.workers", workers, "ray_num_workers")
    key = "ray_num_workers" if workers is not None and gpus is None else ""
    convert_training_arguments(draft, gpus or workers or 1, key)
    _convert_checkpointing(draft)
    if source.get("pure_bf16"):
        draft.set("precision", "bf16", "pure_bf16", note="trained weights are fp32, their products bf16")
    if source.get("split_special_tokens") is not None:
        draft.copy("split_special_tokens", "data.split_special_tokens")
    convert_evaluation_arguments(draft)
    if source.get("early_stopping_steps"):
        draft.copy("early_stopping_steps", "evaluation.early_stopping.patience")


def _convert_task(draft: Draft, task: str) -> None:
    source = draft.source
    draft.set("task", task, "stage")
    if TASKS[task].is_paired:
        loss = str(source.get("pref_loss", "sigmoid"))
        if loss in LOSSES:
            draft.set("preference.loss", LOSSES[loss], "pref_loss")
        else:
            draft.choose("pref_loss", loss, LOSSES, "supported are")
        draft.copy("pref_beta", "preference.beta", 0.1)
    elif TASKS[task].is_rated:
        draft.copy("pref_beta", "kto.beta", 0.1)
        draft.copy("kto_chosen_weight", "kto.desirable_weight")
        draft.copy("kto_rejected_weight", "kto.undesirable_weight")


def _convert_method(draft: Draft) -> None:
    source = draft.source
    kind = str(source.get("finetuning_type", "lora"))
    bits = source.get("quantization_bit")
    if kind == "full":
        draft.set("method.kind", "full", "finetuning_type")
    elif kind == "freeze":
        _convert_freeze(draft)
    elif kind == "lora":
        quantized = bits is not None and _quantization_is_nf4(draft, bits)
        keys = ("finetuning_type", "quantization_bit", "quantization_method", "quantization_type")
        convert_lora(draft, _LORA, "qlora" if quantized else "lora", keys, rank=8)
        convert_modules(draft, "lora_target", source.get("lora_target", "all"), "all", "all-linear")
        if quantized:
            draft.copy("double_quantization", "method.double_quantization", True)
        _convert_start(draft)
    else:
        draft.choose("finetuning_type", kind, ("full", "freeze", "lora"), "supported are")


def _convert_freeze(draft: Draft) -> None:
    layers = draft.source.get("freeze_trainable_layers", 2)
    modules = str(draft.source.get("freeze_trainable_modules", "all"))
    draft.set("method.kind", "last_layers", "finetuning_type", "freeze_trainable_modules")
    if modules != "all":
        remedy = "set it to all: the last layers are trained as a whole, or use finetuning_type: lora"
        draft.fail("freeze_trainable_modules", "single modules of the last layers cannot be trained", remedy)
    if not isinstance(layers, int) or layers < 1:
        remedy = "write a positive number: the last layers are trained"
        draft.fail("freeze_trainable_layers", f"`freeze_trainable_layers: {layers}` means the first layers", remedy)
    else:
        draft.set("method.num_layers", layers, "freeze_trainable_layers")
    draft.set("method.train_head", False, "finetuning_type", note="LLaMA-Factory trains layers only")


def _quantization_is_nf4(draft: Draft, bits: object) -> bool:
    """Whether the base is quantized to NF4; anything else is recorded."""
    method = str(draft.source.get("quantization_method", "bnb")).lower()
    kind = str(draft.source.get("quantization_type", "nf4")).lower()
    if bits == 8:
        draft.drop("quantization_bit", "8 bits: the frozen weights stay in 16 or 32 bits; quantization_bit: 4 is qlora")
        return False
    if bits != 4 or method not in ("bnb", "bitsandbytes"):
        remedy = "use quantization_bit: 4 with quantization_method: bnb (NF4)"
        draft.fail("quantization_bit", f"quantization to {bits} bits with {method} has no equivalent", remedy)
    elif kind != "nf4":
        draft.fail("quantization_type", f"the 4-bit type {kind} has no equivalent", "use nf4")
    return True


def _convert_start(draft: Draft) -> None:
    given = draft.source.get("adapter_name_or_path")
    names = given.split(",") if isinstance(given, str) else given
    if not names:
        return
    if not isinstance(names, list):
        draft.fail("adapter_name_or_path", f"`adapter_name_or_path: {given}` is not a path", "write a directory")
        return
    if len(names) > 1:
        remedy = "merge all but the last into the base model first"
        draft.fail("adapter_name_or_path", "training continues from one adapter only", remedy)
    draft.set("method.start_from", str(names[-1]).strip(), "adapter_name_or_path")


def _convert_lengths(draft: Draft, stage: str) -> None:
    source = draft.source
    draft.copy("cutoff_len", "data.max_seq_len", 2048)
    if stage == "pt":
        draft.set("data.too_long", "split", "stage", note="pretraining concatenates and splits texts")
    else:
        note = "at the end; LLaMA-Factory cuts prompt and answer in proportion"
        draft.set("data.too_long", "truncate", "cutoff_len", note=note)
    neat, packing = source.get("neat_packing", False), source.get("packing")
    packs = bool(neat) or (stage == "pt" if packing is None else bool(packing))
    note = "packed rows never attend to each other, as with neat_packing" if packs and not neat else ""
    draft.set("data.packing", packs, "packing", "neat_packing", note=note)


def _convert_checkpointing(draft: Draft) -> None:
    key = "disable_gradient_checkpointing"
    if draft.source.get(key) is not None:
        draft.set("optimization.gradient_checkpointing", not draft.source.get(key), key)
    else:
        for name in ("gradient_checkpointing", "activation_checkpointing"):
            draft.copy(name, "optimization.gradient_checkpointing")

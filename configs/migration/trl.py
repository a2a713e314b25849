"""trl: the file for `trl sft`, `trl dpo` or `trl kto --config` becomes a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.configs.migration.adapters import AdapterKeys, convert_lora, convert_modules
from tunesmith.configs.migration.draft import Draft
from tunesmith.configs.migration.key_table import key_table, nearest_key
from tunesmith.configs.migration.rows import (
    LOADERS,
    RowSet,
    hub_url,
    is_file_name,
    is_url,
    local_path,
    named_files,
    note_selection,
    own_names,
    set_rows,
)
from tunesmith.configs.migration.training_arguments import (
    Defaults,
    convert_evaluation_arguments,
    convert_training_arguments,
)
from tunesmith.configs.tasks import TASKS

TRAINERS = ("sft", "dpo", "kto")
_LOSSES = {"sigmoid": "dpo", "ipo": "ipo"}
_LORA = AdapterKeys("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora")
_RATES = {"sft": 2.0e-5, "dpo": 1.0e-6, "kto": 1.0e-6}


def trainer_of(values: Mapping[str, Any]) -> str:
    """Return the trainer that the keys of a file are for, as far as they show it."""
    losses = values.get("loss_type")
    first = str(losses[0] if isinstance(losses, list) and losses else losses)
    if first in ("kto", "apo_zero_unpaired") or {"desirable_weight", "undesirable_weight"} & values.keys():
        return "kto"
    return "dpo" if {"beta", "precompute_ref_log_probs"} & values.keys() or first in _LOSSES else "sft"


def convert(draft: Draft, recipe_dir: Path, gpus: int | None, trainer: str | None = None) -> None:
    """Convert a configuration. recipe_dir: where the recipe will be. gpus: number of GPUs. trainer: sft, dpo or kto;
    None: as the keys show."""
    source = draft.source
    trainer = trainer or trainer_of(source.values)
    draft.copy("model_name_or_path", "model.base")
    if source.get("model_revision", "main") != "main":
        draft.copy("model_revision", "model.revision")
    _convert_template(draft, recipe_dir)
    task = _convert_task(draft, trainer)
    _convert_rows(draft, task, recipe_dir)
    _convert_method(draft)
    _convert_lengths(draft, task)
    convert_training_arguments(draft, gpus or 1, defaults=Defaults(_RATES[trainer]))
    key = "activation_checkpointing" if source.has("activation_checkpointing") else "gradient_checkpointing"
    draft.copy(key, "optimization.gradient_checkpointing", True)
    if source.get("activation_offloading"):
        draft.copy("activation_offloading", "optimization.offload_activations")
    convert_evaluation_arguments(draft)


def _convert_template(draft: Draft, recipe_dir: Path) -> None:
    name = draft.source.get("chat_template_path")
    if name is None:
        return
    existing = draft.source.find(str(name))
    if existing is None or not existing.is_file():
        remedy = "save the template of that model to a file, and write its path"
        draft.fail("chat_template_path", f"{name} is not a file with a chat template", remedy)
    else:
        draft.set("model.chat_template", local_path(existing, recipe_dir), "chat_template_path")


def _convert_task(draft: Draft, trainer: str) -> str:
    source = draft.source
    if trainer == "kto":
        if source.get("loss_type", "kto") != "kto":
            draft.choose("loss_type", source.get("loss_type"), ("kto",), "supported is")
        draft.copy("beta", "kto.beta", 0.1)
        draft.copy("desirable_weight", "kto.desirable_weight")
        draft.copy("undesirable_weight", "kto.undesirable_weight")
        return "kto"
    if trainer == "dpo":
        given = source.get("loss_type", "sigmoid")
        names = given if isinstance(given, list) else [given]
        if len(names) == 1 and names[0] in _LOSSES:
            draft.set("preference.loss", _LOSSES[names[0]], "loss_type")
        else:
            draft.choose("loss_type", given, _LOSSES, "supported are")
        draft.copy("beta", "preference.beta", 0.1)
        return "preference"
    if source.get("loss_type", "nll") not in ("nll", "chunked_nll"):
        draft.choose("loss_type", source.get("loss_type"), ("nll",), "supported is")
    return _language_task(draft)


def _language_task(draft: Draft) -> str:
    """Choose between conversations, prompts with completions, and texts, by what is trained."""
    source = draft.source
    if source.get("completion_only_loss") is False:
        remedy = "remove it, or name the column of whole texts in dataset_text_field"
        draft.fail("completion_only_loss", "prompts are context and never trained", remedy)
    if source.get("assistant_only_loss"):
        draft.set("task", "chat", "assistant_only_loss")
    elif source.get("completion_only_loss"):
        draft.set("task", "completion", "completion_only_loss")
    elif source.has("dataset_text_field"):
        draft.set("task", "text", "dataset_text_field")
    else:
        draft.set("task", "chat", "assistant_only_loss", note="conversations; task: text or completion for other rows")
        reason = "in conversations trl trains every message unless it is set; a recipe trains the assistant's messages"
        draft.drop("assistant_only_loss", reason)
    return draft.settings["task"].value


def _convert_rows(draft: Draft, task: str, recipe_dir: Path) -> None:
    source = draft.source
    given = source.get("datasets") or []
    entries = [entry for entry in given if isinstance(entry, Mapping)] if isinstance(given, list) else []
    if len(entries) != (len(given) if isinstance(given, list) else 1):
        draft.fail("datasets", "`datasets` is not a list of sections", "write a path for each data set")
    key = "datasets"
    single = {"dataset_name": "path", "dataset_config": "name", "dataset_train_split": "split"}
    if entries:
        for name in (*single, "dataset_test_split"):
            if source.has(name):
                draft.drop(name, "`datasets` is used instead, as in trl")
        _check_entries(draft, entries)
    elif source.has("dataset_name"):
        key = "dataset_name"
        entries = [{inner: source.get(name) for name, inner in single.items() if source.has(name)}]
    else:
        draft.fail("dataset_name", "the key `dataset_name` is missing", "add it, or `datasets`")
        return
    text = source.get("dataset_text_field")
    columns = own_names({"text": text}) if not TASKS[task].has_prompt else {}
    if TASKS[task].has_prompt and text is not None:
        draft.drop("dataset_text_field", f"rows of the task {task} have other keys")
    sets = [RowSet(str(entry.get("path")), _paths(draft, key, entry, recipe_dir), task, columns) for entry in entries]
    origin = draft.settings.get("task")
    set_rows(draft, key, sets, also=("dataset_config", "dataset_train_split") if key == "dataset_name" else ())
    if origin is not None:
        draft.settings["task"] = origin
    size = draft.number("test_split_size", 0.0)
    if size is not None and size >= 1:
        remedy = "write a fraction such as 0.05"
        draft.fail("test_split_size", "a number of rows; a recipe holds out a fraction", remedy)
    elif size:
        draft.set("data.validation", size, "test_split_size")
    elif source.has("dataset_test_split"):
        reason = "data.train and data.validation name files: add those of this split to data.validation"
        draft.drop("dataset_test_split", reason)


def _check_entries(draft: Draft, entries: list[Mapping[str, Any]]) -> None:
    known = key_table("trl").entries
    for number, entry in enumerate(entries):
        for inner, value in entry.items():
            fact, full = known.get(inner), f"datasets[{number}].{inner}"
            place = draft.source.tree.place(("datasets", number, inner))
            if fact is None:
                close = nearest_key(inner, known)
                remedy = f"did you mean {close}?" if close else f"known are {', '.join(known)}"
                draft.fail("datasets", f"unknown key `{full}`", remedy, place)
            elif fact.group == "refused" and not fact.is_off(value):
                draft.fail("datasets", f"`{full}`: {fact.reason}", fact.remedy, place)


def _paths(draft: Draft, key: str, entry: Mapping[str, Any], recipe_dir: Path) -> tuple[str, ...]:
    path = str(entry.get("path"))
    keys = ("dataset_train_split", "dataset_config") if key == "dataset_name" else (key, key)
    files = named_files(draft, key, entry)
    existing = draft.source.find(path)
    note_selection(draft, keys, path, entry.get("split"), entry.get("name"))
    if is_url(path):
        return (path,)
    if path in LOADERS and not files:
        draft.fail(key, f"`path: {path}` reads local files, and none is given", "add data_files")
        return ()
    if path in LOADERS or is_file_name(path) or existing is not None:
        names = files if path in LOADERS else [path]
        places = [draft.source.find(name) or draft.source.path.parent / name for name in names]
        return tuple(local_path(place, recipe_dir) for place in places)
    folder = entry.get("data_dir")
    return hub_url(path, files or ([str(folder)] if folder else ()))


def _convert_method(draft: Draft) -> None:
    source = draft.source
    quantized = bool(source.get("load_in_4bit"))
    if not source.get("use_peft"):
        draft.set("method.kind", "full", "use_peft", note="no adapter: every weight")
        if quantized or source.get("load_in_8bit"):
            what = "quantized weights are trained with an adapter only"
            draft.fail("load_in_4bit", what, "set use_peft: true, or remove load_in_4bit and load_in_8bit")
        return
    kind = "qlora" if quantized else "lora"
    convert_lora(
        draft, _LORA, kind, ("use_peft", "load_in_4bit", "bnb_4bit_quant_type"), rank=16, alpha=32, dropout=0.05
    )
    if source.has("lora_target_modules"):
        convert_modules(draft, "lora_target_modules", source.get("lora_target_modules"), "all-linear")
    else:
        note = "peft's default for Llama-like models"
        draft.set("method.target_modules", ["q_proj", "v_proj"], "lora_target_modules", note=note)
    if quantized:
        if source.get("bnb_4bit_quant_type", "nf4") != "nf4":
            draft.choose("bnb_4bit_quant_type", source.get("bnb_4bit_quant_type"), ("nf4",), "supported is")
        draft.copy("use_bnb_nested_quant", "method.double_quantization", False)
    elif source.get("load_in_8bit"):
        draft.drop("load_in_8bit", "the frozen weights stay in 16 or 32 bits; load_in_4bit: true is qlora")


def _convert_lengths(draft: Draft, task: str) -> None:
    source = draft.source
    key = source.first("max_length", "max_seq_length")
    if key in source.values and not source.has(key):
        draft.fail(key, f"`{key}: null` means no limit, which a recipe has", "write the length of the longest row")
    draft.copy(key, "data.max_seq_len", 1024)
    mode = source.get("truncation_mode", "keep_start")
    if mode == "keep_start":
        draft.set("data.too_long", "truncate", key, "truncation_mode", note="at the end")
    else:
        draft.choose("truncation_mode", mode, ("keep_start",), "rows are truncated at the end; supported is")
    packs, strategy = bool(source.get("packing")), str(source.get("packing_strategy", "bfd"))
    note = "packed rows never attend to each other" if packs and strategy == "wrapped" else ""
    draft.set("data.packing", packs, "packing", "packing_strategy", note=note)
    if packs and not TASKS[task].has_prompt and strategy != "bfd":
        draft.set("data.too_long", "split", "packing_strategy", key)

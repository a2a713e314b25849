"""Axolotl's data sets: the entries of `datasets`, `test_datasets` and `pretraining_dataset`.

A `type` names how rows become prompts. Those that only name columns have an equivalent; the prompts themselves are
formatted by the model's chat template, or, for the task completion, by the Alpaca prompt.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.configs.migration.draft import Draft
from tunesmith.configs.migration.key_table import key_table, nearest_key
from tunesmith.configs.migration.rows import (
    LOADERS,
    TURN_ROLES,
    RowSet,
    hub_url,
    is_file_name,
    is_hub_id,
    is_url,
    local_path,
    named_files,
    note_selection,
    own_names,
    set_rows,
)
from tunesmith.configs.tasks import TASKS

ROW_TYPES: dict[str, tuple[str, dict[str, str]]] = {
    "alpaca": ("completion", {}),
    "chat_template": ("chat", {}),
    "completion": ("text", {}),
    "pretrain": ("text", {}),
}
"""Types without `rl`: task and columns."""
_PAIRS: dict[str, dict[str, str]] = {
    "default": {},
    "intel": {"prompt": "question"},
    "icr": {"prompt": "input"},
    "prompt_pairs": {},
    "ultra": {},
    "argilla": {},
    "argilla_chat": {},
}
_RATED: dict[str, dict[str, str]] = {
    "argilla": {"prompt": "instruction"},
    "intel": {"prompt": "question"},
    "prompt_pairs": {},
    "ultra": {},
}
_TEMPLATES = ("chat_template", "chatml", "llama3")
"""What may precede the dot in the types of preference rows; the model's template is used for all."""
_WEIGHT_KEYS = ("weight", "train", "trainable", "loss", "masked")
"""Keys of a message that Tunesmith reads as whether it is trained."""


_READ_ALWAYS = ("path", "data_files", "type", "ds_type", "revision", "name", "split")
_READ_BY_TEMPLATE = (
    *("field_messages", "field_tools", "field_system", "message_property_mappings", "message_field_role"),
    *("message_field_content", "message_field_training", "roles", "roles_to_train", "train_on_eos"),
)
"""Keys of an entry that the types of chat templates read."""


def convert_data_sets(draft: Draft, recipe_dir: Path) -> None:
    """Convert where the rows are, their columns, the task and the chat template."""
    source = draft.source
    key = "pretraining_dataset" if source.has("pretraining_dataset") else "datasets"
    entries = _entries(draft, key)
    if not entries:
        draft.fail("datasets", "the key `datasets` is missing or empty", "add it: a list with path and type")
        return
    set_rows(draft, key, _row_sets(draft, key, entries, recipe_dir))
    validation = _entries(draft, "test_datasets")
    sets = _row_sets(draft, "test_datasets", validation, recipe_dir)
    set_rows(draft, "test_datasets", sets, recipe_key="data.validation")
    size = draft.number("val_set_size", 0.0)
    if size is not None and size >= 1:
        remedy = "write a fraction such as 0.05, or set test_datasets"
        draft.fail("val_set_size", f"`val_set_size: {size}` is a number of rows; a recipe holds out a fraction", remedy)
    elif size:
        draft.set("data.validation", size, "val_set_size")
    _convert_template(draft, recipe_dir)
    task = draft.settings["task"].value if "task" in draft.settings else "chat"
    if source.get("train_on_inputs") and TASKS[task].has_prompt:
        remedy = "set it to false, or use type: completion with a text column"
        draft.fail("train_on_inputs", "prompts are context and never trained", remedy)
    elif source.has("train_on_inputs"):
        draft.set("task", task, "datasets", "train_on_inputs")


def _entries(draft: Draft, key: str) -> list[Mapping[str, Any]]:
    given = draft.source.get(key) or []
    entries = given if isinstance(given, list) else [given]
    kind = "pretrain" if key == "pretraining_dataset" else None
    entries = [{"path": entry, "type": kind} if isinstance(entry, str) else entry for entry in entries]
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            draft.fail(key, f"`{key}[{number}]` is not a section", "write path and type of a data set")
    return [entry for entry in entries if isinstance(entry, Mapping)]


def _row_sets(draft: Draft, key: str, entries: list[Mapping[str, Any]], recipe_dir: Path) -> list[RowSet]:
    sets = [_row_set(draft, key, number, entry, recipe_dir) for number, entry in enumerate(entries)]
    return [each for each in sets if each is not None]


def _row_set(draft: Draft, key: str, number: int, entry: Mapping[str, Any], recipe_dir: Path) -> RowSet | None:
    path = str(entry.get("path") or "")
    problems = len(draft.problems)
    _check_keys(draft, key, number, entry)
    for inner in ("message_property_mappings", "roles"):
        if not isinstance(entry.get(inner) or {}, Mapping):
            draft.fail(key, f"`{key}[{number}].{inner}` is not a section", "write it as `name: value` lines")
            return None
    if not path:
        draft.fail(key, f"{key}[{number}] has no path", "add it")
    kind = entry.get("type") or ("pretrain" if key == "pretraining_dataset" else None)
    task_and_columns = _read_type(draft, key, path, kind, entry)
    if task_and_columns is None or len(draft.problems) > problems:
        return None
    task, columns = task_and_columns
    _list_unread(draft, key, entry, task)
    return RowSet(path, _paths(draft, key, path, entry, recipe_dir), task, columns)


def _check_keys(draft: Draft, key: str, number: int, entry: Mapping[str, Any]) -> None:
    known = key_table("axolotl").entries
    kind = entry.get("type")
    nested: Mapping[str, Any] = kind if isinstance(kind, Mapping) else {}
    for inner, value in {**entry, **nested}.items():
        fact, full = known.get(inner), f"{key}[{number}].{inner}"
        place = draft.source.tree.place((key, number, inner))
        if fact is None:
            close = nearest_key(inner, known)
            remedy = f"did you mean {close}?" if close else f"known are {', '.join(known)}"
            draft.fail(key, f"unknown key `{full}`", remedy, place)
        elif fact.group == "refused" and not fact.is_off(value):
            draft.fail(key, f"`{full}`: {fact.reason}", fact.remedy, place)
        elif fact.group == "no_effect":
            draft.drop(key, f"{inner} of {entry.get('path')}: {fact.reason}")


def _list_unread(draft: Draft, key: str, entry: Mapping[str, Any], task: str) -> None:
    """List keys of an entry that its type does not read."""
    read = {*_READ_ALWAYS, *(_READ_BY_TEMPLATE if "chat_template" in str(entry.get("type")) else ())}
    read |= {"field", "text_column"} if not TASKS[task].has_prompt else set()
    read |= {"field_chosen", "field_rejected"} if TASKS[task].is_paired else set()
    for inner, value in entry.items():
        fact = key_table("axolotl").entries.get(inner)
        if fact is not None and fact.group == "mapped" and value is not None and inner not in read:
            own = inner.startswith("chat_template")
            reason = "the model's own chat template is used" if own else f"type {entry.get('type')} does not read it"
            draft.drop(key, f"{inner} of {entry.get('path')}: {reason}")


def _read_type(
    draft: Draft, key: str, path: str, kind: object, entry: Mapping[str, Any]
) -> tuple[str, dict[str, str]] | None:
    rl = draft.source.get("rl")
    if isinstance(kind, Mapping):
        return _own_type(draft, key, path, kind, rl)
    name = str(kind or "")
    prefix, _, form = name.partition(".")
    if rl is None and name in ROW_TYPES:
        task, columns = ROW_TYPES[name]
        if not TASKS[task].has_prompt:
            return task, own_names({"text": entry.get("field") or entry.get("text_column")})
        if not TASKS[task].templated:
            return task, columns
        return _chat(draft, key, path, entry, "chat")
    if rl == "kto" and prefix in _TEMPLATES and form in _RATED:
        return "kto", dict(_RATED[form])
    if (
        rl is not None
        and rl != "kto"
        and prefix in _TEMPLATES
        and (form or "default") in _PAIRS
        and (form != "argilla" or prefix == "chat_template")
    ):
        columns = dict(_PAIRS[form or "default"])
        if prefix == "chat_template" and (form or "default") == "default":
            return _chat(draft, key, path, entry, "preference")
        answers = {"chosen": entry.get("field_chosen"), "rejected": entry.get("field_rejected")}
        return "preference", own_names({**columns, **answers})
    forms = _RATED if rl == "kto" else _PAIRS if rl is not None else None
    choices = ROW_TYPES if forms is None else [f"{prefix}.{form}" for prefix in _TEMPLATES for form in forms]
    draft.choose(key, f"type: {name or 'null'} ({path})", choices, "types with an equivalent are")
    return None


def _own_type(
    draft: Draft, key: str, path: str, kind: Mapping[str, Any], rl: object
) -> tuple[str, dict[str, str]] | None:
    """Read a type that lists columns (`field_...`); formats are refused by the key table."""
    if rl is None:
        names = {"instruction": "field_instruction", "input": "field_input", "output": "field_output"}
        task = "completion"
    elif rl == "kto":
        names = {"prompt": "field_prompt", "completion": "field_completion", "label": "field_label"}
        task = "kto"
    else:
        names = {"prompt": "field_prompt", "chosen": "field_chosen", "rejected": "field_rejected"}
        task = "preference"
    if rl is None and kind.get("field_system"):
        draft.fail(key, f"{path}: the Alpaca prompt has no system message", "remove field_system")
        return None
    columns = {meaning: kind.get(name) for meaning, name in names.items()}
    if rl is not None:
        columns["system"] = kind.get("field_system")
    return task, own_names(columns)


def _chat(draft: Draft, key: str, path: str, entry: Mapping[str, Any], task: str) -> tuple[str, dict[str, str]] | None:
    """Read conversations: their column, the keys of a message, the roles, and which messages are trained."""
    mappings = entry.get("message_property_mappings") or {}
    role = mappings.get("role") or entry.get("message_field_role") or "role"
    content = mappings.get("content") or entry.get("message_field_content") or "content"
    if (role, content) not in (("role", "content"), ("from", "value")):
        remedy = "rename them in the rows to role and content, or to from and value"
        draft.fail(key, f"{path}: messages with the keys {role} and {content} cannot be read", remedy)
        return None
    others = sorted(map(str, mappings.keys() - {"role", "content"}))
    if others:
        reason = "other keys of a message are read by OpenAI's names (tool_calls, name, reasoning_content, ...)"
        draft.drop(key, f"message_property_mappings.{{{', '.join(others)}}} of {path}: {reason}")
    if not _roles_are_known(draft, key, path, entry):
        return None
    weight = entry.get("message_field_training")
    if weight and weight not in _WEIGHT_KEYS:
        remedy = f"rename it in the rows to {', '.join(_WEIGHT_KEYS[:2])}"
        draft.fail(key, f"{path}: `message_field_training: {weight}` is not read", remedy)
    trained = entry.get("roles_to_train")
    if trained not in (None, [], ["assistant"], ["gpt"], ["assistant", "gpt"], ["gpt", "assistant"]):
        remedy = "set it to [assistant]; a message of another role is never trained"
        draft.fail(key, f"{path}: `roles_to_train: {trained}` has no equivalent", remedy)
    if entry.get("train_on_eos") not in (None, "turn"):
        draft.drop(key, f"train_on_eos of {path}: the end of every trained answer is trained")
    messages = entry.get("field_messages") or "messages"
    columns: dict[str, Any] = {"tools": entry.get("field_tools"), "system": entry.get("field_system")}
    if not (messages == "messages" and role == "role"):
        columns["conversations"] = messages
    if TASKS[task].is_paired:
        columns |= {"chosen": entry.get("field_chosen"), "rejected": entry.get("field_rejected")}
    return task, own_names(columns)


def _roles_are_known(draft: Draft, key: str, path: str, entry: Mapping[str, Any]) -> bool:
    roles = entry.get("roles") or {}
    for meaning, names in roles.items():
        known = TURN_ROLES.get("assistant" if meaning == "gpt" else str(meaning), ())
        for name in names if isinstance(names, list) else [names]:
            if name not in known:
                remedy = f"rename it in the rows to {' or '.join(known) or 'system, user, assistant or tool'}"
                draft.fail(key, f"{path}: the role {name} for {meaning} is unknown", remedy)
                return False
    return True


def _paths(draft: Draft, key: str, path: str, entry: Mapping[str, Any], recipe_dir: Path) -> tuple[str, ...]:
    files = named_files(draft, key, entry)
    note_selection(draft, (key, key), path, entry.get("split"), entry.get("name"))
    if is_url(path):
        return (path,)
    if path in LOADERS and not files:
        draft.fail(key, f"`path: {path}` reads local files, and none is given", "add data_files")
        return ()
    existing = draft.source.find(path)
    if path in LOADERS or (existing is None and is_file_name(path)) or existing is not None:
        names = files if files and (path in LOADERS or (existing is not None and existing.is_dir())) else [path]
        base = existing if files and existing is not None and existing.is_dir() else None
        places = [base / name if base else draft.source.find(name) or draft.source.path.parent / name for name in names]
        return tuple(name if is_url(name) else local_path(p, recipe_dir) for name, p in zip(names, places, strict=True))
    if not is_hub_id(path):
        draft.fail(key, f"{path} is neither a file nor a data set of the Hugging Face Hub", "check `path`")
        return ()
    return hub_url(path, files, entry.get("revision"))


def _convert_template(draft: Draft, recipe_dir: Path) -> None:
    """Convert a chat template: a file is carried over; names of templates mean the model's own here."""
    source = draft.source
    text = source.get("chat_template_jinja")
    if text:
        existing = source.find(str(text)) if "\n" not in str(text) and len(str(text)) < 500 else None
        if existing is None:
            remedy = "save it to a file, and write the path of that file"
            draft.fail("chat_template_jinja", "a recipe names a file with the chat template", remedy)
        else:
            draft.set("model.chat_template", local_path(existing, recipe_dir), "chat_template_jinja")
    elif source.has("chat_template") and source.get("chat_template") != "tokenizer_default":
        reason = (
            f"{source.get('chat_template')}: the model's own chat template is used; model.chat_template names a file "
        )
        draft.drop("chat_template", reason + "with another one, which base models need")

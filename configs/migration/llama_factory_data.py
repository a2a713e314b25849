"""LLaMA-Factory's data sets: the entries of dataset_info.json that a configuration names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.configs.migration.draft import Draft
from tunesmith.configs.migration.key_table import key_table, nearest_key
from tunesmith.configs.migration.mixture import with_weights
from tunesmith.configs.migration.rows import (
    TURN_ROLES,
    RowSet,
    hub_url,
    is_file_name,
    local_path,
    note_selection,
    own_names,
    set_rows,
)
from tunesmith.configs.tasks import TASKS

INFO = "dataset_info.json"
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ROLE_OF_TAG = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}


def convert_data_sets(draft: Draft, task: str, recipe_dir: Path) -> None:
    """Convert `dataset` and `eval_dataset`, or `val_size`. task: of the recipe."""
    names = _names(draft, "dataset")
    if not names:
        draft.fail("dataset", "the key `dataset` is missing", f"add it: names of data sets in {INFO}")
        return
    for key, recipe_key in (("dataset", "data.train"), ("eval_dataset", "data.validation")):
        sets = [_row_set(draft, key, name, task, recipe_dir) for name in _names(draft, key)]
        known, also = [each for each in sets if each is not None], ("dataset_dir",)
        if key == "dataset":
            known = with_weights(draft, known, names)
            also = ("dataset_dir", "interleave_probs") if any(each.weight is not None for each in known) else also
        set_rows(draft, key, known, recipe_key=recipe_key, also=also)
    draft.settings.pop("task", None)
    draft.set("task", task, "stage")
    size = draft.number("val_size", 0.0)
    if size is not None and size >= 1:
        remedy = "write a fraction such as 0.05, or set eval_dataset"
        draft.fail("val_size", f"`val_size: {size}` is a number of rows; a recipe holds out a fraction", remedy)
    elif size:
        draft.set("data.validation", size, "val_size")


def _names(draft: Draft, key: str) -> list[str]:
    given = draft.source.get(key, [])
    names = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
    return [str(name).strip() for name in names]


def _row_set(draft: Draft, key: str, name: str, task: str, recipe_dir: Path) -> RowSet | None:
    directory = draft.source.get("dataset_dir", "data")
    if isinstance(directory, Mapping):
        info, folder, place = directory, None, draft.source.place("dataset_dir")
    elif str(directory) == "ONLINE":
        return RowSet(name, hub_url(name), task)
    else:
        definitions = _read_info(draft, key, str(directory))
        if definitions is None:
            return None
        info, folder, place = definitions
    if not isinstance(info.get(name), Mapping):
        close = nearest_key(name, dict.fromkeys(info))  # pyright: ignore[reportArgumentType]
        hint = f"did you mean {close}?" if close else f"its data sets are {', '.join(list(info)[:20])}"
        draft.fail(key, f"{place} has no data set {name}", hint)
        return None
    entry = info[name]
    if not _check_keys(draft, key, name, entry, place):
        return None
    columns = _columns(draft, key, name, entry, task, place)
    if columns is None:
        return None
    paths = _paths(draft, key, name, entry, folder, recipe_dir)
    return RowSet(name, paths, task, columns, max_rows=_max_rows(draft, key, name, entry))


def _max_rows(draft: Draft, key: str, name: str, entry: Mapping[str, Any]) -> int | None:
    """Return `num_samples` of a definition of training rows; None if there is none."""
    number = entry.get("num_samples")
    if number is None:
        return None
    if key != "dataset":
        draft.drop(key, f"{name}.num_samples: all validation rows are used")
        return None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        draft.fail(key, f"`{name}.num_samples` is {number!r}", "write a whole number of at least 1")
        return None
    draft.drop(key, f"{name}.num_samples: becomes max_rows, which selects other rows and repeats none")
    return number


def _read_info(draft: Draft, key: str, directory: str) -> tuple[Mapping[str, Any], Path, str] | None:
    """Return the content of dataset_info.json, its folder and its path."""
    if directory.startswith("REMOTE:"):
        remedy = f"download {INFO} and the files of {directory.removeprefix('REMOTE:')}, and set dataset_dir to them"
        draft.fail("dataset_dir", "data set definitions on a hub are not downloaded", remedy)
        return None
    folders = [draft.source.find(f"{directory}/{INFO}"), draft.source.path.resolve().parent / INFO]
    path = next((path for path in folders if path is not None and path.is_file()), None)
    if path is None:
        tried = ", ".join(str(folder / directory) for folder in draft.source.folders())
        draft.fail(key, f"{INFO} does not exist", f"set dataset_dir to its directory; tried {tried}")
        return None
    try:
        info = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        draft.fail(key, f"{INFO} is not valid JSON: {error}", "correct it", place=str(path))
        return None
    if not isinstance(info, Mapping):
        draft.fail(key, f"{INFO} is not a JSON object", "write the definitions by name", place=str(path))
        return None
    return info, path.parent, str(path)


def _check_keys(draft: Draft, key: str, name: str, entry: Mapping[str, Any], place: str) -> bool:
    """Record unknown and refused keys of a definition, and list those without effect."""
    known, valid = key_table("llama-factory").entries, True
    names = list(entry)
    for section in ("columns", "tags"):
        if not isinstance(entry.get(section) or {}, Mapping):
            draft.fail(key, f"`{name}.{section}` is not a section", "write it as a JSON object", place)
            return False
        if isinstance(entry.get(section), Mapping):
            names += [f"{section}.{inner}" for inner in entry[section]]
    has_source = any(source in entry for source in ("file_name", "hf_hub_url"))
    for inner in names:
        fact = known.get(inner)
        full = f"{name}.{inner}"
        if fact is None:
            close = nearest_key(inner, known)
            remedy = f"did you mean {close}?" if close else f"known are {', '.join(known)}"
            draft.fail(key, f"unknown key `{full}`", remedy, place)
            valid = False
        elif fact.group == "refused" and not (inner in ("ms_hub_url", "om_hub_url") and has_source):
            draft.fail(key, f"`{full}`: {fact.reason}", fact.remedy, place)
            valid = False
        elif fact.group == "no_effect":
            draft.drop(key, f"{full}: {fact.reason}")
        elif fact.group == "refused":
            draft.drop(key, f"{full}: the rows are read from the other address of the definition")
    return valid


def _paths(
    draft: Draft, key: str, name: str, entry: Mapping[str, Any], folder: Path | None, recipe_dir: Path
) -> tuple[str, ...]:
    if "hf_hub_url" in entry and not ("file_name" in entry and folder and (folder / entry["file_name"]).exists()):
        note_selection(draft, (key, key), name, entry.get("split"), entry.get("subset"))
        inner = entry.get("folder")
        return hub_url(str(entry["hf_hub_url"]), [str(inner)] if inner else ())
    for inner in ("split", "subset", "folder"):
        if entry.get(inner) not in (None, "train"):
            draft.drop(key, f"{name}.{inner}: the file is read as a whole")
    file = str(entry.get("file_name", ""))
    path = (folder or draft.source.path.parent) / file
    if not is_file_name(file) and not path.is_dir():
        draft.fail(key, f"{name}: {file} is no data file", "use .json, .jsonl, .csv, .parquet, .arrow or .txt")
    return (local_path(path, recipe_dir),)


def _columns(
    draft: Draft, key: str, name: str, entry: Mapping[str, Any], task: str, place: str
) -> dict[str, str] | None:
    """Return data.columns of a definition; None if it has no equivalent, which is recorded."""
    given = entry.get("columns") if isinstance(entry.get("columns"), Mapping) else None
    if bool(entry.get("ranking")) != TASKS[task].is_paired:
        what = "has" if entry.get("ranking") else "has no"
        draft.fail(
            key, f"{name} {what} rankings (`ranking`), and the stage is {draft.source.get('stage')}", "use another"
        )
        return None
    names = dict(given) if given is not None else {}
    common = {"system": names.get("system"), "tools": names.get("tools")}
    if TASKS[task].is_paired:
        common |= {"chosen": names.get("chosen"), "rejected": names.get("rejected")}
    if TASKS[task].is_rated and names.get("kto_tag") not in (None, "kto_tag", "label"):
        common["label"] = names["kto_tag"]
    if entry.get("formatting", "alpaca") == "alpaca":
        names = names if given is not None else dict(_ALPACA)
        if not TASKS[task].has_prompt:
            return own_names({"text": names.get("prompt")})
        common |= {"instruction": names.get("prompt"), "input": names.get("query"), "history": names.get("history")}
        if not TASKS[task].is_paired:
            common["output"] = names.get("response")
        return own_names(common)
    if not TASKS[task].has_prompt:
        draft.fail(
            key, f"{name}: conversations have no text for stage pt", "use formatting: alpaca with columns.prompt"
        )
        return None
    return _turn_columns(draft, key, name, entry, common, names.get("messages") or "conversations", place)


def _turn_columns(
    draft: Draft, key: str, name: str, entry: Mapping[str, Any], common: dict[str, Any], messages: str, place: str
) -> dict[str, str] | None:
    tags = {**_TAGS, **{tag: value for tag, value in (entry.get("tags") or {}).items() if value}}
    style = (tags["role_tag"], tags["content_tag"])
    if style not in (("from", "value"), ("role", "content")):
        remedy = "rename them in the rows to role and content, or to from and value"
        draft.fail(key, f"{name}: turns with the keys {style[0]} and {style[1]} cannot be read", remedy, place)
        return None
    for tag, meaning in _ROLE_OF_TAG.items():
        if tags[tag] not in TURN_ROLES[meaning]:
            remedy = f"rename it in the rows to {' or '.join(TURN_ROLES[meaning])}"
            draft.fail(key, f"{name}: the role {tags[tag]} (`tags.{tag}`) is unknown", remedy, place)
            return None
    if not (messages == "messages" and style == ("role", "content")):
        common["conversations"] = messages
    return own_names(common)

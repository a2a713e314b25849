"""Convert data sets: where the rows are, and which keys of a row have which meaning.

Data sets that differ in columns, or have weights or a maximum number of rows, become sections of data.train; otherwise
their files are listed. Data sets of different tasks are an error.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from tunesmith.configs.migration.draft import Draft

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".ipc", ".txt", ".md")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
LOADERS = ("json", "csv", "parquet", "arrow", "text")
"""Names that `datasets.load_dataset` takes instead of a data set, for local files."""
TURN_ROLES = {
    "user": ("human", "user"),
    "assistant": ("gpt", "assistant", "chatgpt", "model"),
    "system": ("system",),
    "tool": ("tool", "observation", "tool_response", "function_response"),
    "function_call": ("function_call", "tool_call"),
}
"""Names of roles in turns that Tunesmith reads, by meaning."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


@dataclass(frozen=True)
class RowSet:
    """One data set. paths: as in data.train. task: the recipe's task. columns: as in data.columns. weight, max_rows: as
    in an entry of data.train."""

    name: str
    paths: tuple[str, ...]
    task: str
    columns: Mapping[str, str] = field(default_factory=dict)
    weight: float | None = None
    max_rows: int | None = None


def set_rows(
    draft: Draft, key: str, sets: Sequence[RowSet], *, recipe_key: str = "data.train", also: Sequence[str] = ()
) -> None:
    """Set the files of data sets, and, for training rows, task and columns. key: the source key that lists them. also:
    further source keys that decide where they are."""
    if not sets:
        return
    first = sets[0]
    for other in sets[1:]:
        if other.task != first.task:
            what = f"{first.name} is for the task {first.task}, but {other.name} for {other.task}"
            draft.fail(key, what, "a recipe has one task: train them in two runs, or convert the rows of one")
    is_training = recipe_key == "data.train"
    common = dict(first.columns) if is_training else _columns(draft)
    differ = any(dict(each.columns) != common or each.weight is not None or each.max_rows is not None for each in sets)
    if differ:
        common = {} if is_training else common
        draft.set(recipe_key, _sections(sets, common), key, *also)
    else:
        draft.set(recipe_key, [path for each in sets for path in each.paths], key, *also)
    if is_training:
        draft.set("task", first.task, key)
        if common:
            draft.set("data.columns", common, key)
    elif "task" in draft.settings and draft.settings["task"].value != first.task:
        what = f"{first.name} is for the task {first.task}, the training rows for {draft.settings['task'].value}"
        draft.fail(key, what, "convert its rows")


def _sections(sets: Sequence[RowSet], common: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the data sets as sections with distinct names. common: data.columns."""
    sections, names = [], set[str]()
    for each in sets:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", each.name.rsplit("/", 1)[-1]).strip("-._")[:60] or "rows"
        name = next(name for number in count(1) if (name := stem if number == 1 else f"{stem}-{number}") not in names)
        names.add(name)
        section: dict[str, Any] = {"path": each.paths[0] if len(each.paths) == 1 else list(each.paths), "name": name}
        if dict(each.columns) != dict(common):
            section["columns"] = dict(each.columns)
        options = {"weight": each.weight, "max_rows": each.max_rows}
        sections.append(section | {option: value for option, value in options.items() if value is not None})
    return sections


def _columns(draft: Draft) -> dict[str, str]:
    return dict(draft.settings["data.columns"].value) if "data.columns" in draft.settings else {}


def own_names(columns: Mapping[str, str | None]) -> dict[str, str]:
    """Return only the columns whose name is not their meaning."""
    return {meaning: name for meaning, name in columns.items() if name and name != meaning}


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


def is_file_name(name: str) -> bool:
    """Whether a name is that of a data file, by its suffix."""
    stem = name
    for suffix in COMPRESSED:
        stem = stem.removesuffix(suffix)
    return stem.lower().endswith(SUFFIXES)


def is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None


def hub_url(repository: str, files: Iterable[str] = (), revision: str | None = None) -> tuple[str, ...]:
    """Return the URLs of a data set on the Hugging Face Hub: of its files, or of the whole repository."""
    root = f"hf://datasets/{repository}" + (f"@{revision}" if revision else "")
    return tuple(f"{root}/{name}" for name in files) or (root,)


def local_path(path: Path, recipe_dir: Path) -> str:
    """Return a path as the recipe names it: relative to its directory if it is below the configuration's folders."""
    relative = os.path.relpath(path.resolve(), recipe_dir.resolve())
    return str(path.resolve()) if relative.count("..") > 3 else relative.replace(os.sep, "/")


def named_files(draft: Draft, key: str, entry: Mapping[str, object]) -> list[str]:
    """Return `data_files` of a data set: a name, a list, or a mapping of splits, of which train is used."""
    given = entry.get("data_files")
    if isinstance(given, Mapping):
        others = [str(split) for split in given if split != "train"]
        if others:
            draft.drop(key, f"data_files.{{{', '.join(others)}}}: add the files of other splits to data.validation")
        given = given.get("train")
    return [str(name) for name in (given if isinstance(given, list) else [given] if given else [])]


def note_selection(draft: Draft, keys: tuple[str, str], name: str, split: object, subset: object) -> None:
    """List a split or subset of a hub data set, which a URL does not select. keys: the source keys of the two."""
    if split not in (None, "train"):
        where = f"{name}: split {split}"
        draft.drop(
            keys[0], f"{where}: data.train names whole files; write these rows to a file, or name the split's files"
        )
    if subset:
        draft.drop(keys[1], f"{name}: subset {subset}: name its files in data.train")

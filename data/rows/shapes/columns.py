"""Rows whose keys have other names (`data.columns`) get those of the formats before anything else reads them."""

from collections.abc import Iterable, Mapping
from typing import Any

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.data import Columns
from tunesmith.data.readers.cells import NESTED, nested
from tunesmith.data.refusal import Refusal, keys_of
from tunesmith.data.rows.fields import FORM_KEYS, nearest
from tunesmith.errors import InputError

_CHAT = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "history")
_ANSWERED = ("messages", "conversations", "prompt", "instruction", "input", "history", "system", "tools")
COLUMNS_OF_TASK = {
    "chat": (*_CHAT, "system", "tools"),
    "completion": ("prompt", "completion", "instruction", "input", "output"),
    "text": ("text",),
    "classification": ("text", "text_pair", "label"),
    "seq2seq": ("source", "target"),
    "preference": (*_ANSWERED, "chosen", "rejected"),
    "kto": (*_CHAT, "system", "tools", "label"),
}
"""The keys of `data.columns` that have a meaning for each task."""
_OPTIONAL = ("input", "history", "system", "tools", "text_pair")
_OWN_KEYS = {
    "text": "classification.text_column",
    "label": "classification.label_column",
    "source": "seq2seq.source_column",
    "target": "seq2seq.target_column",
}


def renamed(value: Any, columns: Mapping[str, str]) -> Any:
    """Return a row with the names of the formats, or a Refusal if it lacks a column. Other keys are kept, except those
    that would give the row another format. columns: key of the rows by meaning."""
    if type(value) is not dict:
        return value
    moved = set(columns.values())
    hidden = set(FORM_KEYS) if any(meaning in FORM_KEYS for meaning in columns) else set()
    row = {key: item for key, item in value.items() if key not in moved and key not in columns and key not in hidden}
    for meaning, key in columns.items():
        if key in value:
            item = value[key]
            if meaning in NESTED and isinstance(item, str) and item.strip():
                item = nested(item, key)
                if isinstance(item, Refusal):
                    return item
            row[meaning] = item
        elif meaning not in _OPTIONAL or nearest(key, value, 0.8):
            close = nearest(key, value)
            hint = f'; did you mean "{close}"?' if close else ""
            return Refusal(
                "missing_key",
                f'the row has no "{key}" (data.columns.{meaning}){hint}',
                f"correct data.columns.{meaning}; {keys_of(value)}",
            )
    return row


def with_parsed_cells(value: Any, columns: Mapping[str, str]) -> Any:
    """Return a row in which JSON texts of nested columns, such as messages, are parsed; invalid ones stay."""
    if type(value) is not dict:
        return value
    row = dict(value)
    for meaning, key in columns.items():
        item = row.get(key)
        if meaning in NESTED and isinstance(item, str) and item.strip():
            parsed = nested(item, key)
            row[key] = item if isinstance(parsed, Refusal) else parsed
    return row


def require_columns(
    recipe: Recipe, rows: Iterable[Any], where: str, own: Columns | None, section: str = "data.columns"
) -> None:
    """Raise InputError if `own` has a key without meaning for the task, or a column that none of the rows has.

    rows: the first ones. where: their files, for errors. section: of the recipe, for errors."""
    columns = own.renamed() if own is not None else {}
    if not columns:
        return
    known = COLUMNS_OF_TASK[recipe.task]
    for meaning, key in columns.items():
        if meaning not in known:
            raise InputError(
                f"rows of the task {recipe.task} have no {meaning}",
                where=f"key {section}.{meaning}",
                remedy=f"the keys for this task are {', '.join(known)}",
            )
        if list(columns.values()).count(key) > 1:
            raise InputError(
                f'the column "{key}" has two meanings', where=f"key {section}.{meaning}", remedy="map it once"
            )
        _require_one_name(recipe, meaning)
    left, seen = dict(columns), {}
    for value in rows:
        if isinstance(value, dict):
            seen |= dict.fromkeys(value)
            left = {meaning: key for meaning, key in left.items() if key not in value}
            if not left:
                return
    if seen:
        meaning, key = next(iter(left.items()))
        close = nearest(key, map(str, seen))
        hint = f'; did you mean "{close}"?' if close else ""
        remedy = f"correct it{hint}" if recipe.data.deidentify else f"correct it{hint}; {keys_of(seen)}"
        raise InputError(f'no row has the column "{key}"', where=f"key {section}.{meaning}, {where}", remedy=remedy)


def _require_one_name(recipe: Recipe, meaning: str) -> None:
    """Raise InputError if the task's own section also names the column."""
    section = recipe.task_section
    own = _OWN_KEYS.get(meaning, "").partition(".")[2]
    if section is not None and own in section.model_fields_set and getattr(section, own) != meaning:
        raise InputError(
            f"{_OWN_KEYS[meaning]} and data.columns.{meaning} name the same column",
            where=f"key data.columns.{meaning}",
            remedy="keep one of them",
        )

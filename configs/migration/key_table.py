"""Tables of the configuration keys of other tools: what each becomes in a recipe, or why it becomes nothing.

A table is a YAML file in tables/ with the groups

    mapped:     key -> recipe key; converted by the module of the tool
    no_effect:  lists of keys with the reason why the recipe needs no equivalent
    refused:    lists of keys with reason, remedy and the values that switch the option off; any other value is an error
    entries:    the same groups for the keys of an entry of the data set list

"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

TABLES = Path(__file__).parent / "tables"
TOOLS = {"llama-factory": "LLaMA-Factory", "axolotl": "Axolotl", "trl": "trl"}
"""The tools, with their names in messages."""

_OFF = (None, False, "", "none", "None", [], {})


@dataclass(frozen=True)
class Known:
    """What is known of a key. recipe: the recipe keys it is mapped to. off: values that switch a refused option off, in
    addition to empty ones."""

    group: Literal["mapped", "no_effect", "refused"]
    recipe: str = ""
    reason: str = ""
    remedy: str = ""
    off: tuple[Any, ...] = ()

    def is_off(self, value: object) -> bool:
        """Whether a value switches the option off."""
        return any(type(value) is type(off) and value == off for off in (*_OFF, *self.off))


@dataclass(frozen=True)
class KeyTable:
    """read_from: where the key names were read, with versions. keys: by name. entries: keys of the data set list."""

    read_from: tuple[str, ...]
    keys: Mapping[str, Known]
    entries: Mapping[str, Known] = field(default_factory=dict)


@cache
def key_table(tool: str) -> KeyTable:
    """Return the table of a tool, including the tables that it is based on. Raises ValueError if a key is in two."""
    values = yaml.safe_load((TABLES / f"{tool}.yaml").read_text(encoding="utf-8"))
    keys = _keys(values, tool)
    read_from = list(values["read_from"])
    for base in values.get("based_on", []):
        table = key_table(base)
        read_from += table.read_from
        keys = {**table.keys, **keys}  # the tool's own line for a key replaces that of the table it is based on
    return KeyTable(tuple(read_from), keys, _keys(values.get("entries", {}), f"{tool}: entries"))


def nearest_key(key: str, known: Mapping[str, Known]) -> str | None:
    """Return the known key that is closest to an unknown one; None if none is close."""
    matches = get_close_matches(key, known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def _keys(values: Mapping[str, Any], where: str) -> dict[str, Known]:
    known: dict[str, Known] = {}
    for key, entry in _entries(values):
        if key in known:
            raise ValueError(f"{where}: the key {key} is listed twice")
        known[key] = entry
    return known


def _entries(values: Mapping[str, Any]) -> Iterator[tuple[str, Known]]:
    for key, recipe in (values.get("mapped") or {}).items():
        yield key, Known("mapped", recipe=recipe)
    for group in values.get("no_effect") or []:
        for key in group["keys"]:
            yield key, Known("no_effect", reason=group["reason"])
    for group in values.get("refused") or []:
        for key in group["keys"]:
            off = tuple(group.get("off", ()))
            yield key, Known("refused", reason=group["reason"], remedy=group["remedy"], off=off)

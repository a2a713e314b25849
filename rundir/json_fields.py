"""Frozen dataclasses that are read from JSON objects of any version and written back without loss."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, Self, get_args, get_origin, get_type_hints

from tunesmith.rundir.json_lines import finite_json

_NOT_FINITE = ("nan", "inf", "-inf")


def added_later() -> Any:
    """Declare a field that earlier versions did not write, with None as default."""
    return field(default=None, metadata={"added_later": True})


@dataclass(frozen=True, kw_only=True)
class JsonFields:
    """A subclass declares its fields in the order in which they are written, without defaults.

    A field of type `T | None` is None if the object lacks it or holds a value of another type. A field of type `T` is
    required. A field declared as `added_later()` is not written while it is None. A field whose type is a JsonFields
    has no key: its fields are at the same level as the others, together with everything that fits no field.
    """

    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Values that fit no field: keys unknown to this version, and values of another type."""
    absent: frozenset[str] = field(default=frozenset(), repr=False)
    """Fields missing from the object that was read; they are not written either."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object; non-finite numbers are strings."""
        values: dict[str, Any] = {}
        for name, kind in _kinds(type(self)).items():
            value = getattr(self, name)
            if kind.group is not None:
                values |= value.to_json()
            elif name not in self.absent and not (kind.added_later and value is None):
                values[name] = finite_json(value)
        return values | finite_json(self.extra)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Create an instance from a JSON object. Raises ValueError if a required field is missing or mistyped."""
        rest, values, absent, group = dict(raw), {}, [], None
        for name, kind in _kinds(cls).items():
            if kind.group is not None:
                group = name, kind.group
                continue
            values[name] = None
            if name not in rest:
                absent += [] if kind.added_later else [name]
            elif kind.fits(rest[name]):
                value = rest.pop(name)
                values[name] = float(value) if isinstance(value, str) and str not in kind.types else value
            if values[name] is None and NoneType not in kind.types:
                raise ValueError(f"{cls.__name__} needs {name}")
        if group is not None:
            values[group[0]] = group[1].from_json({key: rest.pop(key) for key in list(rest) if key not in values})
        return cls(extra=rest, absent=frozenset(absent), **values)


@dataclass(frozen=True)
class _Kind:
    """types: allowed types of a value. group: the class of a field without a key. added_later: not in every log."""

    types: tuple[type, ...]
    group: type[JsonFields] | None = None
    added_later: bool = False

    def fits(self, value: Any) -> bool:
        if isinstance(value, bool):
            return bool in self.types
        if isinstance(value, int):
            return int in self.types or float in self.types
        if isinstance(value, str):
            return str in self.types or (float in self.types and value in _NOT_FINITE)
        if isinstance(value, list):
            return list in self.types and all(isinstance(item, dict) for item in value)
        return isinstance(value, self.types)


@cache
def _kinds(cls: type[JsonFields]) -> dict[str, _Kind]:
    """The fields of a class by name, without those of JsonFields itself."""
    hints, own = get_type_hints(cls), {f.name for f in fields(JsonFields)}
    return {f.name: _kind_of(hints[f.name], "added_later" in f.metadata) for f in fields(cls) if f.name not in own}


def _kind_of(hint: Any, added_later: bool) -> _Kind:
    if isinstance(hint, type) and issubclass(hint, JsonFields):
        return _Kind((), hint)
    parts = [hint] if isinstance(hint, type) or get_origin(hint) in (dict, list) else get_args(hint)
    return _Kind(tuple(get_origin(part) or part for part in parts), added_later=added_later)

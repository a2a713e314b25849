"""A recipe in the making: its values with their origins, what is not carried over, and the errors found."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tunesmith.configs.migration.source import Source
from tunesmith.configs.yaml_tree import Problem


@dataclass(frozen=True)
class Setting:
    """The value of a recipe key. keys: the source keys it comes from, those that are set first. note: what the
    conversion did, or why the value was chosen."""

    value: Any
    keys: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class NotCarried:
    """Something of the source without equivalent in the recipe. key: of the source; empty for a difference that has no
    key of its own. line: of the key, if known."""

    key: str
    reason: str
    line: int | None = None


@dataclass
class Draft:
    """settings: by recipe key (`optimization.epochs`). tool: name of the source's tool in messages."""

    source: Source
    tool: str
    settings: dict[str, Setting] = field(default_factory=dict)
    not_carried: list[NotCarried] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def set(self, recipe_key: str, value: Any, *keys: str, note: str = "") -> None:
        """Set a recipe key. keys: the source keys that the value comes from; if the file sets none of them, the value
        is the tool's default."""
        self.settings[recipe_key] = Setting(value, keys, note)

    def drop(self, key: str, reason: str) -> None:
        """List a source key, or its value, as not carried over."""
        self.not_carried.append(NotCarried(key, reason, self.source.line(key)))

    def fail(self, key: str, what: str, remedy: str, place: str | None = None) -> None:
        """Record an error. key: of the source. place: `file:line` if it is not that of the key."""
        self.problems.append(Problem(what, place or self.source.place(key), remedy, key))

    def copy(self, key: str, recipe_key: str, default: Any = None) -> None:
        """Carry a value over as it is, or the tool's default; nothing if there is neither."""
        value = self.source.get(key, default)
        if value is not None:
            self.set(recipe_key, value, key)

    def whole(self, key: str, default: int) -> int | None:
        """Return a whole number of at least 1; None if the value is something else, which is recorded as an error."""
        value = self.source.get(key, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value) and value >= 1:
            return int(value)
        self.fail(key, f"`{key}` is {value!r}", "write a whole number of at least 1")
        return None

    def number(self, key: str, default: float) -> float | None:
        """Return a number; None if the value is something else, which is recorded as an error."""
        value = self.source.get(key, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
        self.fail(key, f"`{key}` is {value!r}", "write a number")
        return None

    def choose(self, key: str, value: object, choices: Iterable[str], supported: str) -> None:
        """Record the error that a value has no equivalent. choices: supported values. supported: why, or what to do."""
        self.fail(key, f"`{key}: {value}` has no equivalent in a recipe", f"{supported}: {', '.join(choices)}")

    def origin(self, recipe_key: str) -> tuple[str, ...]:
        """Return the source keys that a recipe key comes from and that the file sets."""
        keys = self.settings[recipe_key].keys if recipe_key in self.settings else ()
        return tuple(key for key in keys if self.source.has(key))

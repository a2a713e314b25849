"""The configuration file of another tool: its values, with the line of each key."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.configs.yaml_tree import InvalidYaml, Tree, as_number, read_tree
from tunesmith.errors import InputError

MAX_BYTES = 1 << 20
_PARENTS = 4
"""Folders above the configuration in which its relative paths are looked up: these tools resolve them against the
directory in which they are started, often the root of a repository with configurations in examples/."""


@dataclass
class Source:
    """A configuration. values: by key."""

    path: Path
    tree: Tree
    values: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or the default if it is missing or null. Unquoted text that is a number, such as
        2e-5 in YAML 1.1, is converted."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, str):
            number = as_number(self.tree.plain.get((key,), ""))
            value = value if number is None else number
        return value

    def has(self, key: str) -> bool:
        """Whether a key is set to something else than null."""
        return self.values.get(key) is not None

    def first(self, *keys: str) -> str:
        """Return the first of several names of one option that is set; the first name if none is."""
        return next((key for key in keys if self.has(key)), keys[0])

    def place(self, key: str) -> str:
        """Return `file:line` of a key, or the file."""
        return self.tree.place((key,))

    def line(self, key: str) -> int | None:
        """Return the line of a key; None if the file does not have it."""
        number = self.tree.places.get((key,), "").rpartition(":")[2]
        return int(number) if number.isdigit() else None

    def find(self, name: str) -> Path | None:
        """Find a file or directory that the configuration names; None if it does not exist."""
        path = Path(name).expanduser()
        return next((place / path for place in self.folders() if (place / path).exists()), None)

    def folders(self) -> list[Path]:
        """Return the folders against which relative paths are resolved, in this order."""
        here = self.path.resolve().parent
        return list(dict.fromkeys([here, Path.cwd(), *list(here.parents)[:_PARENTS]]))


def read_source(path: Path) -> Source:
    """Read a YAML or JSON file. Raises InputError if it is missing, invalid, or not a mapping."""
    try:
        if path.stat().st_size > MAX_BYTES:
            what = f"this file is too large for a configuration ({path.stat().st_size:,} bytes)"
            raise InputError(what, where=str(path), remedy="pass the configuration of the training run")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("the configuration is not UTF-8 text", where=str(path), remedy="save it as UTF-8") from None
    except OSError as error:
        what = f"the configuration cannot be read: {error.strerror}"
        raise InputError(what, where=str(path), remedy="check the path and its permissions") from None
    if path.suffix.lower() == ".json":
        text = text.replace("\t", " ")  # only between values: JSON escapes tabs in strings, and YAML has none there
    try:
        tree = read_tree(text, str(path))
    except InvalidYaml as error:
        place = str(path) if error.line is None else f"{path}:{error.line}, column {error.column}"
        what = f"the configuration is not valid YAML or JSON: {error.message}"
        raise InputError(what, where=place, remedy="check this line and the one before") from None
    if not isinstance(tree.values, dict) or not tree.values:
        what = "a configuration is a mapping of `key: value` lines"
        raise InputError(what, where=str(path), remedy="pass the YAML or JSON file of the training run")
    return Source(path, tree, tree.values)

"""Parse YAML into plain values with source positions, so that errors can name the line of a key.

Composed with PyYAML's safe loader: no tag creates an object. Read as YAML 1.1, except that dates and keys stay strings.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]
MAX_NODES = 10_000
_KEPT_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Problem:
    """One problem: what is wrong, its place (`file:line`, or the argument), the remedy, and the key."""

    what: str
    place: str
    remedy: str
    key: str = ""


@dataclass
class Tree:
    """values: dicts, lists, strings, numbers, booleans, None. places: `file:line` of each key path.
    plain: the source text of unquoted values."""

    source: str
    values: Any = None
    places: dict[KeyPath, str] = field(default_factory=dict)
    plain: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: KeyPath) -> str:
        """Return the place of a key, or of the nearest enclosing section that has one."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.source)

    def value(self, path: KeyPath) -> Any:
        """Return the value at a path. Raises KeyError, IndexError or TypeError if there is none."""
        value = self.values
        for part in path:
            value = value[part]
        return value


class InvalidYaml(ValueError):
    """The text is not valid YAML. message: the parser's message. line, column: 1-based, if known."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None):
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


def key_name(path: KeyPath) -> str:
    """Return a key path as written in messages: `data.train[0]`."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return name


def read_tree(text: str, source: str, line_of_source: bool = True) -> Tree:
    """Parse one YAML document. Raises InvalidYaml. Duplicate keys are recorded in `problems`; the last one wins.

    line_of_source: places are `source:line`; otherwise the source alone (an argument has no lines).
    """
    tree = Tree(source)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        tree.values = None if node is None else _Reader(tree, loader, line_of_source).value(node, ())
    except yaml.MarkedYAMLError as error:
        at_end = error.context_mark is not None and "<stream end>" in (error.problem or "")
        mark = error.context_mark if at_end or error.problem_mark is None else error.problem_mark
        message = " ".join(part for part in (error.context, error.problem) if part)
        raise InvalidYaml(message, mark.line + 1 if mark else None, mark.column + 1 if mark else None) from error
    except yaml.reader.ReaderError as error:
        raise InvalidYaml(f"it contains a character that YAML does not allow (code {error.character!r})") from error
    except yaml.YAMLError as error:
        raise InvalidYaml(str(error)) from error
    except RecursionError:
        raise InvalidYaml("it is nested too deeply, or refers to itself") from None
    return tree


class _Reader:
    """Reader of the composed nodes of one document."""

    def __init__(self, tree: Tree, loader: yaml.SafeLoader, line_of_source: bool):
        self.tree, self.loader, self.line_of_source = tree, loader, line_of_source
        self.num_nodes = 0
        self.flattened: set[yaml.Node] = set()  # merged keys are not duplicates when an alias repeats

    def place(self, node: yaml.Node) -> str:
        return f"{self.tree.source}:{node.start_mark.line + 1}" if self.line_of_source else self.tree.source

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:  # aliases of aliases grow exponentially
            raise InvalidYaml(f"it has more than {MAX_NODES} values")
        self.tree.places.setdefault(path, self.place(node))
        if node.tag.startswith(("!", "tag:yaml.org,2002:python")):
            mark = node.start_mark
            raise InvalidYaml(f"the tag {node.tag} is not allowed here", mark.line + 1, mark.column + 1)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, number)) for number, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        seen: dict[str, yaml.Node] = {}
        for key, _ in [] if node in self.flattened else node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InvalidYaml("a key must be a scalar", key.start_mark.line + 1, key.start_mark.column + 1)
            if key.value in seen:
                full, first = key_name((*path, key.value)), seen[key.value].start_mark.line + 1
                remedy = f"keep one of them; the first is in line {first}"
                self.tree.problems.append(Problem(f"duplicate key `{full}`", self.place(key), remedy, full))
            seen[key.value] = key
        self.flattened.add(node)
        self.loader.flatten_mapping(node)  # `<<: *base`: merged keys come first, the section's keys override them
        values: dict[str, Any] = {}
        for key, item in node.value:
            here = (*path, key.value)
            self.tree.places[here] = self.place(key)
            values[key.value] = self.value(item, here)
        return values

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        if node.style is None:
            self.tree.plain[path] = node.value
        if node.tag not in _KEPT_TAGS:
            return node.value
        try:
            return self.loader.construct_object(node)
        except (ValueError, KeyError):  # such as an integer of ten thousand digits
            return node.value


def as_number(text: str) -> int | float | None:
    """Parse a number; None if it is not one. YAML 1.1 reads `2e-4` as a string, since it has no dot."""
    if not _NUMBER.fullmatch(text.strip()):
        return None
    number = float(text.replace("_", ""))
    return int(number) if number.is_integer() and abs(number) < 2**53 else number

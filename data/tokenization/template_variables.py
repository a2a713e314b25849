"""Variables that a chat template reads, besides the conversation, such as `enable_thinking`, and their values.

A value for a name that the template does not read would be ignored silently, so it is an error.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from jinja2 import Environment, meta, nodes

from tunesmith.errors import InputError

KEY = "model.chat_template_kwargs"
"""The recipe's key for the values."""
RESERVED = frozenset(
    (
        *("messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
        *("mask_token", "strftime_now", "raise_exception", "namespace", "dict", "range", "cycler", "joiner", "lipsum"),
        *("loop", "self", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "sanitize_control_tokens", "tokenizer_kwargs"),
    )
)
"""Names with a meaning of their own in templates, or among the arguments of transformers' apply_chat_template."""
TemplateKwargs = Mapping[str, Any]


class UnreadableVariable(InputError):
    """Raised for a value that a template does not use. name: of the variable."""

    def __init__(self, name: str, what: str, remedy: str):
        super().__init__(what, where=f"{KEY}.{name}", remedy=remedy)
        self.name = name


def variables_read(environment: Environment, sources: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """Return the variables that templates read and that may be set. names: those that are defined anyway."""
    read: set[str] = set()
    for source in sources:
        tree = environment.parse(source)
        first: dict[str, bool] = {}
        for name in _names_in_order(tree):
            first.setdefault(name.name, name.ctx == "load")
        # A variable that the template assigns before it reads it (in an `if` or a loop) would lose its value.
        read |= {name for name in meta.find_undeclared_variables(tree) if first.get(name, True)}
    return frozenset(read - RESERVED - set(names))


def _names_in_order(node: nodes.Node) -> Iterator[nodes.Name]:
    """Yield the names in a part of a template in the order of their evaluation: values before what they are assigned
    to."""
    if isinstance(node, nodes.Name):
        yield node
    children = list(node.iter_child_nodes())
    if isinstance(node, nodes.Assign | nodes.For):
        children = [*children[1:], children[0]] if isinstance(node, nodes.Assign) else [children[1], *children]
    for child in children:
        yield from _names_in_order(child)


def require_readable(values: TemplateKwargs, known: frozenset[str], template: str) -> None:
    """Raise UnreadableVariable for a reserved name, or one that the template does not read. known: those that it
    reads. template: its name in errors."""
    for name in values:
        if name in RESERVED or not name.isidentifier():
            raise UnreadableVariable(
                name, f"{name!r} is reserved and cannot be set as a template variable", "remove it"
            )
        if name not in known:
            close = get_close_matches(name, sorted(known), 1, 0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            listed = ", ".join(sorted(known)) or "none"
            raise UnreadableVariable(
                name, f"{template} does not read the variable {name!r}{hint}", f"the variables that it reads: {listed}"
            )


def with_defaults(source: str, values: TemplateKwargs) -> str:
    """Return a template whose variables have these values unless others are passed to it, as in any tool that renders
    it. values: JSON values."""
    lines = [f"{{%- if {n} is not defined %}}{{%- set {n} = {_literal(v)} %}}{{%- endif %}}" for n, v in values.items()]
    return "\n".join([*lines, "{#- #}"]) + source if lines else source


def _literal(value: Any) -> str:
    """Return a JSON value in Jinja's syntax."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)

"""Write a converted recipe as YAML in which a comment names the source key of each line."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from tunesmith.configs.migration.draft import Draft, NotCarried, Setting
from tunesmith.configs.recipe import Recipe

_WIDTH = 120


def recipe_text(draft: Draft, not_carried: Iterable[NotCarried], empty: Iterable[str]) -> str:
    """Return the recipe as commented YAML, its sections in the order of the schema. empty: keys without a value."""
    lines = [
        f"# Converted by `tunesmith migrate` from {_one_line(draft.source.path.name)} ({draft.tool}).",
        f"# Comments name the source key of a line, with its line; `default` is a default of {draft.tool}.",
        "",
    ]
    for section in Recipe.model_fields:
        if section in draft.settings:
            lines.append(_line("", section, draft.settings[section], draft))
        inner = {key: draft.settings[key] for key in draft.settings if key.startswith(f"{section}.")}
        if inner:
            lines.append(f"{section}:")
            lines += _section(inner, section, draft)
    return "\n".join([*lines, "", *not_carried_lines(not_carried, empty)]) + "\n"


def _section(settings: Mapping[str, Setting], section: str, draft: Draft) -> list[str]:
    lines, opened = [], set()
    for key, setting in settings.items():
        *above, last = key.removeprefix(f"{section}.").split(".")
        if above and above[0] not in opened:
            opened.add(above[0])
            lines.append(f"  {above[0]}:")
        lines.append(_line("    " if above else "  ", last, setting, draft))
    return lines


def _line(indent: str, key: str, setting: Setting, draft: Draft) -> str:
    return f"{indent}{key}: {_scalar(setting.value)}  # {_comment(setting, draft)}"


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=100_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(setting: Setting, draft: Draft) -> str:
    named = [key for key in setting.keys if draft.source.has(key)]
    origin = ", ".join(f"{key} (line {draft.source.line(key)})" for key in named)
    text = origin or f"default of {', '.join(setting.keys)}"
    return _one_line(f"{text}; {setting.note}" if setting.note else text)


def not_carried_lines(not_carried: Iterable[NotCarried], empty: Iterable[str]) -> list[str]:
    """Return comment lines that list what is not carried over, keys with the same reason together."""
    lines = ["# Not carried over:"]
    for keys, reason in grouped(not_carried):
        lines += [f"#   {keys}", f"#       {_one_line(reason)}"]
    names = list(empty)
    if names:
        lines += [f"#   {', '.join(map(_one_line, names))}", "#       without a value, or switched off"]
    return lines if len(lines) > 1 else ["# Every key of the source is carried over."]


def grouped(not_carried: Iterable[NotCarried]) -> list[tuple[str, str]]:
    """Return (keys with their lines, reason), keys with the same reason together."""
    groups: dict[str, list[str]] = {}
    for entry in not_carried:
        line = f" (line {entry.line})" if entry.line is not None else ""
        name = f"{_one_line(entry.key)}{line}"
        if name not in groups.setdefault(entry.reason, []):
            groups[entry.reason].append(name)
    return [(", ".join(names), reason) for reason, names in groups.items()]


def _one_line(text: str) -> str:
    """Text for a comment: without line breaks and characters that YAML does not allow."""
    return "".join(character if character.isprintable() else " " for character in text)

"""Turn pydantic's validation errors into readable problems, with the help of the recipe's schema."""

import json
from typing import Any

from tunesmith.configs.allowed import (
    all_keys,
    choices_of,
    describe,
    keys_at,
    meaning_of,
    nearest,
    recipe_schema,
    schema_at,
    variants,
)
from tunesmith.configs.yaml_tree import KeyPath, Problem, Tree, as_number, key_name
from tunesmith.errors import InputError

SHOWN = 20
_UNSUPPORTED = {
    ("precision", "fp8"): "fp8 is not supported: its scaling factors per tensor are part of neither checkpoints nor "
    "exports; use bf16 (fp16 before compute capability 8.0), and method.kind: qlora to save memory"
}
"""Values of other tools, by key: why they are rejected and what to use instead."""


def problems_of(findings: list[Any], tree: Tree) -> list[Problem]:
    """Return one problem per key, in the order of pydantic's findings (`ValidationError.errors()`)."""
    problems: dict[KeyPath, Problem] = {}
    for finding in findings:
        path = tree_path(finding["loc"], tree)
        if path not in problems:
            problems[path] = _problem(finding, path, tree)
    return list(problems.values())


def tree_path(loc: tuple[str | int, ...], tree: Tree) -> KeyPath:
    """Return the key path of a finding. pydantic's location also contains kinds (`lora`) and variants (`list[str]`)."""
    path: KeyPath = ()
    for number, part in enumerate(loc):
        known = keys_at(path, tree.values)
        try:
            value = tree.value(path)
        except (KeyError, IndexError, TypeError):
            break
        if isinstance(value, dict) and value.get("kind") == part and "kind" in known and path == loc[:number]:
            continue  # the kind of a discriminated section
        if isinstance(part, int) or part in known or (isinstance(value, dict) and part in value):
            path = (*path, part)
    return path


def convert_numbers(findings: list[Any], tree: Tree) -> bool:
    """Convert unquoted text such as `2e-4` to a number where one is expected. Return whether any value changed."""
    converted = False
    for finding in findings:
        path = tree_path(finding["loc"], tree)
        number = as_number(tree.plain.get(path, ""))
        if finding["type"] in ("float_type", "int_type") and path and number is not None:
            holder = tree.value(path[:-1])
            converted |= isinstance(holder[path[-1]], str)
            holder[path[-1]] = number
    return converted


def raise_problems(problems: list[Problem], source: str, document: str = "recipe") -> None:
    """Raise one InputError that lists all problems; return if there are none. document: what the source is."""
    if not problems:
        return
    if len(problems) == 1:
        (problem,) = problems
        where = f"{problem.place}, key {problem.key}" if problem.key else problem.place
        raise InputError(problem.what, where=where, remedy=problem.remedy)
    lines = [f"  {p.place}: {p.what}\n      {p.remedy}" for p in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  ... and {len(problems) - SHOWN} more")
    what = f"the {document} has {len(problems)} problems:\n" + "\n".join(lines)
    raise InputError(what, where=source, remedy="fix these and run the same command again")


def _problem(finding: Any, path: KeyPath, tree: Tree) -> Problem:
    kind, key = finding["type"], key_name(path)
    if kind == "extra_forbidden":
        return _unknown_key(path, tree)
    if kind == "missing":
        return _missing_key(path, tree)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_kind(path, tree)
    if kind == "value_error":  # of a validator in the schema: "what is wrong; what to do"
        what, _, remedy = str(finding["ctx"]["error"]).partition("; ")
        return Problem(f"`{key}`: {what}", tree.place(path), remedy, key)
    node = schema_at(path, tree.values) or {}
    allowed = describe(node)
    choices = choices_of(node)
    given = _given(path, tree)
    remedy = meaning_of(node) or f"write {allowed}"
    value = tree.value(path)
    if isinstance(value, str) and (key, value) in _UNSUPPORTED:
        remedy = _UNSUPPORTED[key, value]
    elif (suggestion := nearest(value, choices)) and isinstance(value, str):
        remedy = f"did you mean `{suggestion}`?"
    elif node.get("type") == "string" and isinstance(value, (bool, int, float)) and path in tree.plain:
        remedy = f'YAML does not read {tree.plain[path]} as a string: write "{tree.plain[path]}" with quotes'
    elif _takes_list(node) and not choices and isinstance(value, str) and not value.rstrip().endswith("%"):
        remedy = f"write it as a list: {key.rsplit('.', 1)[-1]}: [{value}]"
    elif kind == "string_pattern_mismatch":
        allowed = meaning_of(node).split("; ")[-1].rstrip(".") or allowed
    return Problem(f"`{key or 'the recipe'}` takes {allowed}; given: {given}", tree.place(path), remedy, key)


def _unknown_key(path: KeyPath, tree: Tree) -> Problem:
    key, word, section = key_name(path), str(path[-1]), path[:-1]
    known = keys_at(section, tree.values)
    place = f"`{key_name(section)}`" if section else "a recipe"
    elsewhere = all_keys()
    if word in elsewhere:
        remedy = f"did you mean `{elsewhere[word][0]}`?"
        kinds = [name for name in elsewhere[word] if section and name == key]
        if kinds:  # a key of another kind of method
            kind = tree.value(section).get("kind")
            remedy = f"{place} with kind {kind} has the keys {', '.join(known)}; remove `{word}` or change the kind"
    elif suggestion := nearest(word, known):
        remedy = f"did you mean `{key_name((*section, suggestion))}`?"
    elif suggestion := nearest(word, list(elsewhere)):
        remedy = f"did you mean `{elsewhere[suggestion][0]}`? The keys of {place} are {', '.join(known)}"
    else:
        remedy = f"the keys of {place} are {', '.join(known)}"
    return Problem(f"unknown key `{key}`", tree.place(path), remedy, key)


def _missing_key(path: KeyPath, tree: Tree) -> Problem:
    key = key_name(path)
    node = schema_at(path, tree.values) or {}
    example = {"name": "name: my-run", "model": "model: {base: models/smollm2-135m}", "method": "method: {kind: lora}"}
    example["data"] = "data: {train: [rows.jsonl]}"
    remedy = f"add `{example[key]}`" if key in example else f"add it: {describe(node)}"
    if key not in example and meaning_of(node):
        remedy += f" ({meaning_of(node)})"
    return Problem(f"the key `{key}` is missing", tree.place(path), remedy, key)


def _unknown_kind(path: KeyPath, tree: Tree) -> Problem:
    section = tree.value(path)
    kinds = list((schema_at(path, None) or recipe_schema()).get("discriminator", {}).get("mapping", {}))
    here = (*path, "kind") if isinstance(section, dict) else path
    if isinstance(section, dict) and "kind" not in section:
        remedy = f"add `kind:` with one of {', '.join(kinds)}"
        return Problem(f"the key `{key_name(here)}` is missing", tree.place(path), remedy, key_name(here))
    suggestion = nearest(tree.value(here), kinds)
    remedy = f"did you mean `{suggestion}`?" if suggestion else f"use one of {', '.join(kinds)}"
    what = f"`{key_name(here)}` takes one of {', '.join(kinds)}; given: {_given(here, tree)}"
    return Problem(what, tree.place(here), remedy, key_name(here))


def _given(path: KeyPath, tree: Tree) -> str:
    """The value as written by the user, shortened."""
    text = tree.plain.get(path)
    if text is None:
        text = json.dumps(tree.value(path), ensure_ascii=False)
    text = text or "nothing"
    return text if len(text) <= 60 else text[:57] + "..."


def _takes_list(node: dict[str, Any]) -> bool:
    return node.get("type") == "array" or any(option.get("type") == "array" for option in variants(node))

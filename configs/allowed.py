"""Describe what the recipe's schema allows at a key: known keys, types, ranges and meanings, read from the models."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.yaml_tree import KeyPath

Schema = dict[str, Any]


@cache
def recipe_schema() -> Schema:
    return Recipe.model_json_schema()


def schema_at(path: KeyPath, values: Any) -> Schema | None:
    """Return the schema of a key; None if the key is unknown. values: the recipe, which selects the kind of method."""
    node = _section_of(recipe_schema(), values)
    for part in path:
        values = _child(values, part)
        if isinstance(part, int):
            child = node.get("items") or next((a["items"] for a in variants(node) if "items" in a), None)
            if child is None and part < len(node.get("prefixItems", [])):
                child = node["prefixItems"][part]
        else:
            child = node.get("properties", {}).get(part)
        if child is None:
            return None
        node = _section_of(child, values)
    return node


def keys_at(path: KeyPath, values: Any) -> list[str]:
    """Return the known keys of a section, in schema order; empty if the path is not a section."""
    node = schema_at(path, values)
    if node is None:
        return []
    if "discriminator" in node:
        return [node["discriminator"]["propertyName"]]
    return list(node.get("properties", {}))


def kinds_of(path: KeyPath) -> dict[str, list[str]]:
    """Return the kinds of a section that has several (`method`), each with its keys; empty for any other section."""
    node = schema_at(path, None)
    if node is None or "discriminator" not in node:
        return {}
    return {kind: list(_resolve(ref)["properties"]) for kind, ref in node["discriminator"]["mapping"].items()}


def all_keys() -> dict[str, list[str]]:
    """Map the last part of each key to its full names: `learning_rate` -> [`optimization.learning_rate`]."""
    full_names: dict[str, list[str]] = {}

    def collect(node: Schema, prefix: str) -> None:
        node = _section_of(node, None)
        variants = [_resolve(ref) for ref in node.get("discriminator", {}).get("mapping", {}).values()] or [node]
        for variant in variants:
            for key, child in variant.get("properties", {}).items():
                names = full_names.setdefault(key, [])
                if f"{prefix}{key}" not in names:
                    names.append(f"{prefix}{key}")
                collect(child, f"{prefix}{key}.")

    collect(recipe_schema(), "")
    return full_names


def nearest(word: Any, known: list[str]) -> str | None:
    """Return the known word closest to a misspelled one; None if none is close."""
    matches = get_close_matches(str(word).lower(), known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def choices_of(node: Schema) -> list[str]:
    """Return the text values that the schema lists for a key; empty if it lists none."""
    choices = [str(choice) for choice in node.get("enum", [])]
    if isinstance(node.get("const"), str):
        choices.append(node["const"])
    for option in variants(node):
        choices += choices_of(option)
    return choices


def describe(node: Schema) -> str:
    """Describe the values that a key accepts: `an integer, 1 or more`."""
    node = _resolve(node)
    if forms := variants(node):
        return ", or ".join(describe(option) for option in forms)
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    if "const" in node:
        return f"`{node['const']}`"
    if "prefixItems" in node:
        return f"a list of {len(node['prefixItems'])} values, each {describe(node['prefixItems'][0])}"
    kind = node.get("type")
    if kind in ("integer", "number"):
        return ("an integer" if kind == "integer" else "a number") + _range(node, kind == "integer")
    if kind == "array":
        minimum = node.get("minItems", 0)
        return f"a list of {_plural(node.get('items', {}))}" + (f", at least {minimum}" if minimum else "")
    if kind == "object":
        return "a section with the keys " + ", ".join(node.get("properties", {}))
    if "discriminator" in node:
        kinds = ", ".join(node["discriminator"]["mapping"])
        return f"a section whose key `{node['discriminator']['propertyName']}` is one of {kinds}"
    return {"boolean": "true or false", "null": "null", "string": "a string"}.get(kind or "", "a value")


def meaning_of(node: Schema) -> str:
    """Return the first sentence of a key's docstring; empty if it has none."""
    text = " ".join(node.get("description", "").split())
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]


def variants(node: Schema) -> list[Schema]:
    """The forms that a value may have, such as a string or a section. Kinds of a section are not forms."""
    return node.get("anyOf") or ([] if "discriminator" in node else node.get("oneOf", []))


def _range(node: Schema, whole: bool) -> str:
    low, above, high, below = (
        int(bound) if isinstance(bound := node.get(name), float) and bound.is_integer() else bound
        for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    )
    if whole and above is not None:
        low, above = above + 1, None
    if whole and below is not None:
        high, below = below - 1, None
    start = f"above {above}" if above is not None else f"{low} or more" if low is not None else ""
    if high is None and below is None:
        return f", {start}" if start else ""
    end = f"at most {high}" if high is not None else f"below {below}"
    return f", {start} and {end}" if start else f", {end}"


def _plural(item: Schema) -> str:
    if forms := variants(item):
        return " or ".join(_plural(variant) for variant in forms)
    names = {"string": "strings", "integer": "integers", "number": "numbers", "object": "sections"}
    return names.get(_resolve(item).get("type", ""), "values")


def _resolve(node: Schema | str) -> Schema:
    reference = node if isinstance(node, str) else node.get("$ref")
    if reference is None:
        assert not isinstance(node, str)
        return node
    target = recipe_schema()["$defs"][reference.rsplit("/", 1)[1]]
    return target if isinstance(node, str) else {**target, **{k: v for k, v in node.items() if k != "$ref"}}


def _section_of(node: Schema, values: Any) -> Schema:
    """Follow references; reduce `section or null` to the section, and several kinds to the one that the values name."""
    node = _resolve(node)
    for option in variants(node):
        if "$ref" in option:
            return _resolve(option)
    if "discriminator" in node and isinstance(values, Mapping):
        kind = values.get(node["discriminator"]["propertyName"])
        reference = node["discriminator"]["mapping"].get(kind) if isinstance(kind, str) else None
        if reference is not None:
            return _resolve(reference)
    return node


def _child(values: Any, part: str | int) -> Any:
    try:
        return values[part]
    except (KeyError, IndexError, TypeError):
        return None

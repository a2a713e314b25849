"""What the recipe's schema allows at a key, in words: known keys, types, ranges, meanings, read off the models."""

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
    """The schema of a key; None where no such key is known. values: the recipe, to know the kind of method."""
    node = _section_of(recipe_schema(), values)
    for part in path:
        values = _child(values, part)
        if isinstance(part, int):
            child = node.get("items") or next((a["items"] for a in node.get("anyOf", []) if "items" in a), None)
            if child is None and part < len(node.get("prefixItems", [])):
                child = node["prefixItems"][part]
        else:
            child = node.get("properties", {}).get(part)
        if child is None:
            return None
        node = _section_of(child, values)
    return node


def keys_at(path: KeyPath, values: Any) -> list[str]:
    """The known keys of a section, in the order of the schema; empty where it is no section."""
    node = schema_at(path, values)
    if node is None:
        return []
    if "discriminator" in node:
        return [node["discriminator"]["propertyName"]]
    return list(node.get("properties", {}))


def kinds_of(path: KeyPath) -> dict[str, list[str]]:
    """The kinds of a section that has several (`method`), each with its keys; empty for any other."""
    node = schema_at(path, None)
    if node is None or "discriminator" not in node:
        return {}
    return {kind: list(_resolve(ref)["properties"]) for kind, ref in node["discriminator"]["mapping"].items()}


def all_keys() -> dict[str, list[str]]:
    """Every key's last part, with the full names it has: `learning_rate` -> [`optimization.learning_rate`]."""
    found: dict[str, list[str]] = {}

    def collect(node: Schema, prefix: str) -> None:
        node = _section_of(node, None)
        variants = [_resolve(ref) for ref in node.get("discriminator", {}).get("mapping", {}).values()] or [node]
        for variant in variants:
            for key, child in variant.get("properties", {}).items():
                names = found.setdefault(key, [])
                if f"{prefix}{key}" not in names:
                    names.append(f"{prefix}{key}")
                collect(child, f"{prefix}{key}.")

    collect(recipe_schema(), "")
    return found


def nearest(word: Any, known: list[str]) -> str | None:
    """The known word that a misspelled one most likely meant."""
    matches = get_close_matches(str(word).lower(), known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def choices_of(node: Schema) -> list[str]:
    """The words that may stand here, where the schema lists them."""
    words = [str(word) for word in node.get("enum", [])]
    if isinstance(node.get("const"), str):
        words.append(node["const"])
    for option in node.get("anyOf", []):
        words += choices_of(option)
    return words


def in_words(node: Schema) -> str:
    """What a key takes: `a whole number, 1 or more`."""
    node = _resolve(node)
    if "anyOf" in node:
        return ", or ".join(in_words(option) for option in node["anyOf"])
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    if "const" in node:
        return f"`{node['const']}`"
    if "prefixItems" in node:
        return f"a list of {len(node['prefixItems'])} values, each {in_words(node['prefixItems'][0])}"
    kind = node.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(node, kind == "integer")
    if kind == "array":
        least = node.get("minItems", 0)
        return f"a list of {_plural(node.get('items', {}))}" + (f", at least {least}" if least else "")
    if kind == "object":
        return "a section with the keys " + ", ".join(node.get("properties", {}))
    if "discriminator" in node:
        kinds = ", ".join(node["discriminator"]["mapping"])
        return f"a section whose key `{node['discriminator']['propertyName']}` is one of {kinds}"
    return {"boolean": "true or false", "null": "null", "string": "text"}.get(kind or "", "a value")


def meaning_of(node: Schema) -> str:
    """The first sentence of a key's docstring; empty where it has none."""
    text = " ".join(node.get("description", "").split())
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]


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
    return {"string": "texts", "integer": "whole numbers", "number": "numbers"}.get(item.get("type", ""), "values")


def _resolve(node: Schema | str) -> Schema:
    reference = node if isinstance(node, str) else node.get("$ref")
    if reference is None:
        assert not isinstance(node, str)
        return node
    meant = recipe_schema()["$defs"][reference.rsplit("/", 1)[1]]
    return meant if isinstance(node, str) else {**meant, **{k: v for k, v in node.items() if k != "$ref"}}


def _section_of(node: Schema, values: Any) -> Schema:
    """Follow references; of `section or null` take the section; of several kinds the one that the values name."""
    node = _resolve(node)
    for option in node.get("anyOf", []):
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

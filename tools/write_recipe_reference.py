"""Generate docs/recipe.md from the recipe's schema; a test checks that the page is up to date.

python tools/write_recipe_reference.py            write the page
python tools/write_recipe_reference.py --print    print it
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tunesmith.configs.recipe import Recipe

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipe.md"
HEAD = """# The recipe

One YAML file describes one run. `make docs` generates this page from the schema in `configs/recipe.py` and
`configs/sections/`.

- An unknown key is an error that names the file, the line and the nearest known key.
- Any key can be overridden on the command line, repeatedly: `--set optimization.epochs=3 --set seed=1`.
- `tunesmith plan RECIPE` prints the plan of the run, with a reason for every decision, without training.
- Null means either that the plan decides, with a reason, or that the option is off, as described for each key.

Shipped examples: `configs/recipes/` and `demo/recipe.yaml`.
"""
KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


def page() -> str:
    """Return the page as Markdown."""
    paths: dict[type[BaseModel], str] = {}
    for path, model in sorted(sections("", Recipe), key=lambda entry: entry[0].count(".")):
        paths.setdefault(model, path)
    parts = [HEAD.rstrip(), *section("", Recipe, [], paths)]
    return "\n".join(parts).rstrip() + "\n"


def sections(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield (path, model) of a section and of all sections in it."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            yield from sections(f"{path}.{name}" if path else name, inner)


def section(path: str, model: type[BaseModel], parts: list[str], paths: Mapping[type[BaseModel], str]) -> list[str]:
    """Append the table of a model's keys, then those of its sections, depth first in schema order. paths: where the
    table of each model is; other sections with the same keys refer to it."""
    kind = kind_of(model)
    title = f"`{path}`" + (f", kind `{kind}`" if kind else "") if path else "Top level"
    parts.append(f"\n## {title}")
    if model.__doc__:
        parts.append(f"\n{one_line(model.__doc__)}")
    if paths[model] != path:
        parts.append(f"\nKeys: those of `{paths[model]}`.")
        return parts
    parts += ["\n| key | value | default | meaning |", "|---|---|---|---|"]
    below = []
    for name, field in model.model_fields.items():
        inner = models_in(field.annotation)
        below += [(f"{path}.{name}" if path else name, part) for part in inner]
        parts.append(row(name, field, inner))
    for inner_path, part in below:
        section(inner_path, part, parts, paths)
    return parts


def row(name: str, field: FieldInfo, inner: list[type[BaseModel]]) -> str:
    optional = ", or null" if NoneType in get_args(field.annotation) else ""
    sections = "a list of sections" if get_origin(field.annotation) is list else "a section"
    value = f"{sections}, see below{optional}" if inner else described(field.annotation, field.metadata)
    if inner and has_other_forms(field.annotation):
        value = f"{described(field.annotation, field.metadata)}, see below"
    default = "required" if field.is_required() else default_of(field.default)
    meaning = one_line(field.description or "") or one_line((inner[0].__doc__ or "") if len(inner) == 1 else "")
    if len(inner) > 1:
        kinds = "One of: " + ", ".join(f"`{kind_of(part)}`" for part in inner) + "."
        meaning = f"{meaning} {kinds}".strip()
    cells = [f"`{name}`", value, default, meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def has_other_forms(annotation: Any) -> bool:
    """Whether a value may be a section or something else, apart from null."""
    if get_origin(annotation) in (Union, UnionType):
        forms = [bool(models_in(part)) for part in get_args(annotation) if part is not NoneType]
        return True in forms and False in forms
    return any(has_other_forms(part) for part in get_args(annotation))


def described(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """Describe the values that a key accepts."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        text = described(arguments[0], constraints(arguments[1:]))
    elif origin in (Union, UnionType):
        text = " or ".join(described(part) for part in arguments if part is not NoneType)
        text += " or null" if NoneType in arguments else ""
    elif origin is Literal:
        text = " or ".join(f"`{value}`" for value in arguments)
    elif origin is list:
        item = described(arguments[0])
        words = [f"{word}s" if word in {*KINDS.values(), "section"} else word for word in item.split(" or ")]
        text = f"list of {' or '.join(words)}"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        text = "section"
    elif origin is dict:
        text = "mapping of names to values"
    elif origin is tuple:
        text = f"{len(arguments)} × {described(arguments[0])}"
    else:
        text = KINDS[annotation]
    return " ".join([text, *(limit for item in constraints(metadata) if (limit := limit_of(item)))])


def constraints(metadata: Any) -> list[Any]:
    """Return the bounds in an annotation's metadata; those of pydantic's Field are nested one level deeper."""
    return [item for entry in metadata for item in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]


def limit_of(item: Any) -> str:
    for kind, sign in SIGNS.items():
        if isinstance(item, kind):
            bound = getattr(item, kind.__name__.lower())
            return f"{sign} {bound:g}" if bound < 1e6 else f"{sign} 2^{bound.bit_length() - 1}"
    return "(not empty)" if isinstance(item, MinLen) else ""


def default_of(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "as below"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def kind_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return get_args(field.annotation)[0] if field else None


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        print(page(), end="")
    else:
        PAGE.write_text(page(), encoding="utf-8")

"""Turn the configuration of another tool into a recipe, without dropping a key silently.

Every key of the file is mapped, listed as not carried over with the reason, or an error. An error means that something
else would be trained: another objective, model or data. What only changes how the same is reached is listed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.configs.migration import axolotl, llama_factory, trl
from tunesmith.configs.migration.draft import Draft, NotCarried, Setting
from tunesmith.configs.migration.key_table import TOOLS, key_table, nearest_key
from tunesmith.configs.migration.source import Source, read_source
from tunesmith.configs.migration.write import recipe_text
from tunesmith.configs.problems import raise_problems
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError

_MARKS = {
    "llama-factory": {"stage", "finetuning_type", "template", "cutoff_len", "dataset_dir", "lora_target"},
    "axolotl": {"base_model", "datasets", "sequence_len", "micro_batch_size", "num_epochs", "val_set_size", "adapter"},
    "trl": {
        *(
            "dataset_name",
            "dataset_text_field",
            "completion_only_loss",
            "assistant_only_loss",
            "max_length",
            "use_peft",
        ),
        *(
            "max_seq_length",
            "lora_r",
            "packing_strategy",
            "beta",
            "truncation_mode",
            "dataset_num_proc",
            "desirable_weight",
        ),
    },
}
"""Keys that show which tool a file is for."""
_PATH_WORDS = {"", ".", "..", "output", "outputs", "saves", "save", "runs", "out", "results", "models"}


@dataclass(frozen=True)
class Migration:
    """text: the recipe as commented YAML. settings: by recipe key. not_carried: in the order of the file."""

    tool: str
    recipe: Recipe
    text: str
    settings: Mapping[str, Setting]
    not_carried: tuple[NotCarried, ...]
    empty: tuple[str, ...]
    """Keys without a value, or switched off, in the file."""


def migrate(
    path: Path,
    *,
    tool: str | None = None,
    trainer: str | None = None,
    gpus: int | None = None,
    recipe_dir: Path | None = None,
) -> Migration:
    """Convert a configuration file. tool: a key of TOOLS; None: as the keys show. trainer: trl's, see trl.convert.
    gpus: number of GPUs that the configuration was used on; None: what the file says, otherwise one. recipe_dir: where
    the recipe will be, for relative paths; None: the working directory. Raises InputError that lists all errors."""
    source = read_source(path)
    tool = tool or detect(source)
    draft = Draft(source, TOOLS[tool])
    draft.problems += source.tree.problems
    empty = _classify(draft, tool)
    directory = recipe_dir or Path.cwd()
    if tool == "llama-factory":
        llama_factory.convert(draft, directory, gpus)
    elif tool == "axolotl":
        axolotl.convert(draft, directory, gpus)
    else:
        trl.convert(draft, directory, gpus, trainer)
    draft.set("name", _name(draft), "output_dir")
    _list_unread(draft, tool)
    _require_base(draft, tool)
    problems = sorted(draft.problems, key=lambda problem: _line_of(problem.place))
    raise_problems(problems, str(path), "configuration")
    recipe = _validated(draft)
    order = {key: number for number, key in enumerate(source.values)}
    not_carried = tuple(sorted(draft.not_carried, key=lambda entry: order.get(entry.key, len(order))))
    text = recipe_text(draft, not_carried, empty)
    return Migration(TOOLS[tool], recipe, text, draft.settings, not_carried, empty)


def detect(source: Source) -> str:
    """Return the tool that a file is for: the one with the most of its typical keys. Raises InputError if unclear."""
    scores = {tool: len(marks & source.values.keys()) for tool, marks in _MARKS.items()}
    best = max(scores.values())
    tools = [tool for tool, score in scores.items() if score == best]
    if best == 0 or len(tools) > 1:
        what = "the keys do not show which tool the configuration is for"
        raise InputError(what, where=str(source.path), remedy=f"add --from {'|'.join(TOOLS)}")
    return tools[0]


def _classify(draft: Draft, tool: str) -> tuple[str, ...]:
    """Record unknown and refused keys, list those without effect; return those that are empty or switched off."""
    known, empty = key_table(tool).keys, []
    for key in draft.source.values:
        fact, value = known.get(key), draft.source.get(key)
        if fact is None:
            close = nearest_key(key, known)
            remedy = f"did you mean `{close}`?" if close else f"remove it: {draft.tool} has no key of this name"
            draft.fail(key, f"unknown key `{key}`", remedy)
        elif value is None or (fact.group == "refused" and fact.is_off(value)):
            empty.append(key)
        elif fact.group == "refused" and not _is_harmless(key, value):
            draft.fail(key, f"`{key}`: {fact.reason}", fact.remedy)
        elif fact.group != "mapped":
            draft.drop(key, fact.reason if fact.group == "no_effect" else "kernels are chosen by the plan (`kernels`)")
    return tuple(empty)


def _is_harmless(key: str, value: Any) -> bool:
    """Whether a refused key has a value with nothing to refuse: plugins of kernels."""
    kernels = ("liger", "cut_cross_entropy", "kernels")
    return key == "plugins" and isinstance(value, list) and all(any(k in str(name) for k in kernels) for name in value)


def _list_unread(draft: Draft, tool: str) -> None:
    """List mapped keys that the conversion of this file had no use for, such as pref_beta without preferences."""
    known = key_table(tool).keys
    carried = {key for setting in draft.settings.values() for key in setting.keys}
    listed = {entry.key for entry in draft.not_carried} | {problem.key for problem in draft.problems}
    for key in draft.source.values:
        if key in known and known[key].group == "mapped" and draft.source.has(key) and key not in carried | listed:
            value = draft.source.get(key)
            off = "it is switched off" if known[key].is_off(value) else "the other keys of this file leave it unused"
            draft.drop(key, f"{off}; it would become {known[key].recipe}")


def _require_base(draft: Draft, tool: str) -> None:
    key = "base_model" if tool == "axolotl" else "model_name_or_path"
    if "model.base" not in draft.settings:
        draft.fail(key, f"the key `{key}` is missing", "add it: a directory or a hub id")


def _name(draft: Draft) -> str:
    """Return a name for the run, from the output directory or else the name of the file."""
    given = str(draft.source.get("output_dir", ""))
    parts = [part for part in re.split(r"[/\\]+", given) if part.lower() not in _PATH_WORDS]
    words = parts[-3:] or [draft.source.path.stem]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words)).strip("-._")
    return name[:64] or "migrated"


def _validated(draft: Draft) -> Recipe:
    values = nested({key: setting.value for key, setting in draft.settings.items()})
    try:
        return Recipe.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        for finding in error.errors(include_url=False):
            loc = [str(part) for part in finding["loc"] if part not in ("lora", "qlora", "full", "last_layers")]
            names = [".".join(loc[:count]) for count in range(len(loc), 0, -1)]
            key = next((name for name in names if name in draft.settings), names[-1] if names else "")
            origin = next(iter(draft.origin(key)), key)
            what = f"`{origin}: {finding['input']}` is not valid for {key}: {finding['msg']}"
            draft.fail(origin, what, "correct the value; docs/recipe.md has the values of every key")
    raise_problems(draft.problems, str(draft.source.path), "configuration")
    raise AssertionError("a validation error has at least one finding")


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert dotted keys to sections."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        holder = result
        for section in sections:
            holder = holder.setdefault(section, {})
        holder[last] = value
    return result


def _line_of(place: str) -> int:
    line = place.rpartition(":")[2]
    return int(line) if line.isdigit() else 0

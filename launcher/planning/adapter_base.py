"""A LoRA adapter as the base model of a run: merged into its base model, or continued, as the recipe chooses."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tunesmith.configs.plan import AdapterTokenizer, Choice, ModelFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Lora
from tunesmith.data.cache import cache_root
from tunesmith.errors import InputError, RunFault, TunesmithError
from tunesmith.launcher.planning.linked_copy import linked_copy
from tunesmith.model_files import ADAPTER_CONFIG, BASE_FINGERPRINT, MANIFEST, require_undamaged
from tunesmith.report.wording import plural

_MODULE = "tunesmith.training.export.merge"
_FORMAT = 2
"""Number of the merged copy's content; to be raised if it changes."""


class Base(NamedTuple):
    """The directory of the model that a run trains on, and what an adapter brought for it."""

    directory: Path
    tokenizer: AdapterTokenizer | None = None


def resolve_base(recipe: Recipe, recipe_dir: Path) -> Base:
    """Return the model that the run trains on; of an adapter, its base model, with the adapter's tokenizer and template
    if it has others, or the merged copy. Copies are created at first use. Raises InputError, and RunFault if the
    adapter is damaged or the cache is full."""
    from tunesmith.modeling.base_model.adapter_files import (
        adapter_base,
        adapter_directory,
        require_plain_lora,
        require_text_only,
    )
    from tunesmith.modeling.base_model.companion_files import brought
    from tunesmith.modeling.base_model.source import resolve_model

    model, cache = recipe.model, cache_root()
    adapter = adapter_directory(model.base, recipe_dir)
    if adapter is None or model.adapter is None:
        for key in ("adapter", "adapter_base"):
            if adapter is None and getattr(model, key) is not None:
                raise InputError(
                    f"model.{key} is for an adapter, but model.base is not the directory of one",
                    where=f"key model.{key}",
                    remedy=f"remove it, or set model.base to a directory with adapter_config.json: {model.base}",
                )
        return Base(resolve_model(model.base, model.revision, recipe_dir, cache=cache))
    require_undamaged(adapter)
    require_plain_lora(adapter)
    if recipe.task_facts.model != "causal":
        raise InputError(
            f"task {recipe.task} cannot start from an adapter", where="key model.base", remedy="use a whole model"
        )
    if model.adapter_base is not None:
        base = resolve_model(model.adapter_base, model.revision, recipe_dir, cache=cache)
    else:
        base = adapter_base(adapter)
    require_undamaged(base)
    _require_its_base(adapter, base)
    require_text_only(adapter, base)
    other = brought(base, adapter, cache)
    if "tokenizer" in other:
        require_same_ids(base, adapter)
    if model.adapter == "merge":
        return Base(_merged(base, adapter), AdapterTokenizer(brought=other) if other else None)
    return with_tokenizer(base, adapter, other) if other else Base(base)


def require_continuable(recipe: Recipe, recipe_dir: Path) -> None:
    """Raise InputError if the recipe contradicts the adapter that it continues."""
    from tunesmith.modeling.base_model.adapter_files import adapter_directory, require_same_settings

    if recipe.model.adapter != "continue":
        return
    adapter = adapter_directory(recipe.model.base, recipe_dir)
    assert adapter is not None  # otherwise the base model was not resolved
    if not isinstance(recipe.method, Lora):
        raise InputError(
            f"an adapter is continued by training it, but method.kind is {recipe.method.kind}",
            where="key method.kind",
            remedy="set method.kind to lora or qlora, or model.adapter to merge",
        )
    if recipe.method.start_from is not None:
        raise InputError(
            "two adapters to start from: model.base and method.start_from",
            where="key method.start_from",
            remedy="remove method.start_from, or set model.base to the base model",
        )
    require_same_settings(recipe.method, adapter, "key model.base")


def adapter_base_choice(recipe: Recipe, model: ModelFacts) -> list[Choice]:
    """What becomes of the adapter that the recipe names as base model; empty if it names none."""
    if recipe.model.adapter is None:
        return []
    others = model.adapter_tokenizer.brought if model.adapter_tokenizer is not None else []
    whose = f"{' and '.join(others) or 'tokenizer'}: the {'adapter' if others else 'base model'}'s"
    if recipe.model.adapter == "continue":
        reason = f"training starts from the weights of {recipe.model.base}, on {model.base_directory}; {whose}"
        return [Choice(key="base adapter", value="continued", reason=reason)]
    reason = (
        f"{recipe.model.base} is merged into its base model: sums computed and stored in fp32, each rounded once; the "
        f"copy in {model.directory} is the base model of this run; {whose}"
    )
    return [Choice(key="base adapter", value="merged", reason=reason)]


def _require_its_base(adapter: Path, base: Path) -> None:
    """Raise InputError if the adapter was exported by Tunesmith for another base model."""
    from tunesmith.modeling.base_model.facts import model_fingerprint

    try:
        manifest = json.loads((adapter / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # not an export
    expected = manifest.get(BASE_FINGERPRINT) if isinstance(manifest, dict) else None
    if expected is None or (actual := model_fingerprint(base, cache_root())) == expected:
        return
    raise InputError(
        f"the adapter was trained on another base model: fingerprint {expected[:12]}, here {actual[:12]}",
        where=str(base),
        remedy="set model.adapter_base to the base model that it was trained on",
    )


def require_same_ids(base: Path, adapter: Path) -> None:
    """Raise InputError if the adapter's tokenizer gives a token of the base model's another id, or cannot be read."""
    own, others = (_vocabulary(directory / "tokenizer.json") for directory in (adapter, base))
    different = sorted(token for token, number in own.items() if others.get(token, number) != number)
    if different:
        first = different[0]
        raise InputError(
            f"the adapter's tokenizer is not for its base model: {plural(len(different), 'token')} with another id, "
            f"such as {first!r}: {own[first]} instead of {others[first]}",
            where=str(adapter / "tokenizer.json"),
            remedy=f"set model.adapter_base to its base model, or remove the tokenizer files to use those of {base}",
        )


def _vocabulary(path: Path) -> dict[str, int]:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(path)).get_vocab(with_added_tokens=True) if path.is_file() else {}
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"tokenizer.json cannot be read: {error}", where=str(path), remedy="copy it again") from error


def with_tokenizer(base: Path, adapter: Path, other: list[str]) -> Base:
    """Return a copy of the base model in the cache that links to its weights, with the adapter's tokenizer files and
    templates. other: what the adapter brings."""
    from tunesmith.modeling.base_model.companion_files import companion_digests, companions, is_companion
    from tunesmith.modeling.base_model.facts import model_fingerprint
    from tunesmith.modeling.base_model.new_rows import link_others

    fingerprint = model_fingerprint(base, cache_root())
    content = json.dumps([_FORMAT, fingerprint, str(base), companion_digests(base, adapter, cache_root())])
    final = cache_root() / "models" / f"{base.name}-tokenizer-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def write(target: Path) -> None:
        target.mkdir()
        for name, path in companions(base, adapter).items():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target / name)
        link_others(base, target, is_companion)

    directory = linked_copy(final, write, "with the adapter's tokenizer")
    return Base(
        directory, AdapterTokenizer(brought=other, base_directory=str(base.resolve()), base_fingerprint=fingerprint)
    )


def merged_directory(base: Path, adapter: Path) -> Path:
    """Return where the cache has the merged copy: by the content of everything that is written to it."""
    from tunesmith.modeling.base_model.adapter_files import ADAPTER_WEIGHTS
    from tunesmith.modeling.base_model.companion_files import companion_digests
    from tunesmith.modeling.base_model.facts import model_fingerprint
    from tunesmith.modeling.base_model.fingerprint import file_digest

    digests = [file_digest(adapter / name, cache_root()) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    companions = companion_digests(base, adapter, cache_root())
    content = json.dumps([_FORMAT, model_fingerprint(base, cache_root()), *digests, companions])
    return cache_root() / "models" / f"{base.name}-merged-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def merge_failure(adapter: Path, what: str, is_input: bool) -> TunesmithError:
    """Return the error of a merge that failed. what, is_input: see `derived_model`."""
    message, *more = what.splitlines()
    given = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in more)}
    remedy = "merge it with peft, and set model.base to the result"
    if "killed by signal" in message:
        remedy = "use a machine with more memory"
    elif "No space left" in message or "Disk quota" in message:
        remedy = "free disk space, or set TUNESMITH_CACHE to a directory on another disk"
    error = InputError if is_input else RunFault
    return error(
        f"the adapter could not be merged: {message}",
        where=given.get("where", str(adapter)),
        remedy=given.get("what to do", f"{remedy}; or set model.adapter: continue, which needs no merged copy"),
    )


def _merged(base: Path, adapter: Path) -> Path:
    """Return the merged copy in the cache."""
    from tunesmith.modeling.base_model.derived import derived_model

    memory = "merging needs about 8 bytes of memory per weight"
    failure = partial(merge_failure, adapter)
    return derived_model(merged_directory(base, adapter), _MODULE, [base, adapter], memory=memory, failure=failure)

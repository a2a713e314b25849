"""Checks that recipe, model and data still match the plan that a run was started with."""

from collections.abc import Mapping

from tunesmith.configs.plan import DataFacts, ModelFacts, Plan, SplitFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError
from tunesmith.launcher.planning.placement import PLACES
from tunesmith.modeling.base_model.multimodal import require_planned_as_text

NEW_RUN = "undo the change, or start a new run with another --run-dir"


def differences(old: Recipe, new: Recipe) -> list[str]:
    """One line per key whose value differs, such as `optimization.epochs: 1 -> 2`, in recipe order.

    Keys of PLACES are ignored.
    """
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = dict.fromkeys([*before, *after])
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in keys
        if before.get(key, ...) != after.get(key, ...) and not key.startswith(PLACES)
    ]


def require_same_model(plan: Plan, model: ModelFacts) -> None:
    """Raise InputError if the files of the base model or the initial adapter are not those of the plan."""
    if model.adapter_sha256 != plan.model.adapter_sha256:
        raise InputError(
            "the initial adapter is not the one that the run was started with",
            where=f"key method.start_from: {model.adapter}",
            remedy=NEW_RUN,
        )
    require_planned_as_text(plan.model, model, plan.tunesmith_version)
    if model.fingerprint == plan.model.fingerprint:
        return
    shape = [
        f"{key}: {getattr(plan.model, key)} -> {getattr(model, key)}"
        for key in ("model_type", "num_layers", "hidden_size", "vocab_size", "num_params")
        if getattr(plan.model, key) != getattr(model, key)
    ]
    what = "; ".join(shape) or "same shape, but different weights, configuration or tokenizer"
    raise InputError(
        f"the base model is not the one that the run was started with ({what})",
        where=f"{model.directory}: {plan.model.fingerprint[:12]} -> {model.fingerprint[:12]}",
        remedy=NEW_RUN,
    )


def require_same_data(plan: Plan, data: DataFacts) -> None:
    """Raise InputError if rows, tokenizer or chat template give other tokens than those of the plan."""
    if data.fingerprint == plan.data.fingerprint:
        return
    counts = _count_differences(plan.data, data)
    raise InputError(
        f"the data is not the data that the run was started with ({counts})",
        where=f"{', '.join(plan.recipe.data.training_paths)}: {plan.data.fingerprint[:12]} -> {data.fingerprint[:12]}",
        remedy=NEW_RUN,
    )


def has_same_tokens(old: DataFacts, new: DataFacts) -> bool:
    """Whether rows that an earlier version prepared have as many tokens now, in every split, and none with special
    tokens in its content, which are tokenized differently."""
    splits = ((old.train, new.train), (old.validation, new.validation), (old.retain, new.retain))
    return not new.num_special and all(_counts(before) == _counts(after) for before, after in splits)


def _counts(split: SplitFacts | None) -> dict[str, int] | None:
    return None if split is None else split.model_dump(exclude={"index"})


def _count_differences(old: DataFacts, new: DataFacts) -> str:
    lines = []
    for name, before, after in (("training", old.train, new.train), ("validation", old.validation, new.validation)):
        for key in ("num_rows", "num_tokens", "supervised_tokens"):
            first, second = getattr(before, key, 0), getattr(after, key, 0)
            if first != second:
                lines.append(f"{name} {key.removeprefix('num_').replace('_', ' ')}: {first} -> {second}")
    return "; ".join(lines) or "same number of rows and tokens, but different content, tokenizer or chat template"


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(flat: Mapping[str, object], key: str) -> str:
    if key not in flat:
        return "not set"
    return "null" if flat[key] is None else str(flat[key])

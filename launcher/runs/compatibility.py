"""Whether a run is still the run it was: recipe, model and data against the plan that it was started with."""

from collections.abc import Mapping

from tunesmith.configs.plan import DataFacts, ModelFacts, Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import InputError
from tunesmith.launcher.planning.placement import PLACES

NEW_RUN = "restore what was changed, or start a new run with another --run-dir"


def differences(old: Recipe, new: Recipe) -> list[str]:
    """`optimization.epochs: 1 -> 2`, one line for each key whose value differs, in the order of the recipe.

    Keys of PLACES may differ.
    """
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = dict.fromkeys([*before, *after])
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in keys
        if before.get(key, ...) != after.get(key, ...) and not key.startswith(PLACES)
    ]


def require_same_model(plan: Plan, found: ModelFacts) -> None:
    """Raises InputError where the files of the base model, or its chat template's place, are not those of the plan."""
    if found.adapter_sha256 != plan.model.adapter_sha256:
        raise InputError(
            "the adapter that is trained further is not the one that the run was started with",
            where=f"key method.start_from: {found.adapter}",
            remedy=NEW_RUN,
        )
    if found.fingerprint == plan.model.fingerprint:
        return
    shape = [
        f"{key}: {getattr(plan.model, key)} -> {getattr(found, key)}"
        for key in ("model_type", "num_layers", "hidden_size", "vocab_size", "num_params")
        if getattr(plan.model, key) != getattr(found, key)
    ]
    what = "; ".join(shape) or "same shape, other bytes in its weights, configuration or tokenizer"
    raise InputError(
        f"the base model is not the one that the run was started with ({what})",
        where=f"{found.directory}: {plan.model.fingerprint[:12]} -> {found.fingerprint[:12]}",
        remedy=NEW_RUN,
    )


def require_same_data(plan: Plan, found: DataFacts) -> None:
    """Raises InputError where the rows, the tokenizer or the template give other tokens than those of the plan."""
    if found.fingerprint == plan.data.fingerprint:
        return
    counts = _count_differences(plan.data, found)
    raise InputError(
        f"the data is not what the run was started with ({counts})",
        where=f"{', '.join(plan.recipe.data.train)}: {plan.data.fingerprint[:12]} -> {found.fingerprint[:12]}",
        remedy=NEW_RUN,
    )


def _count_differences(old: DataFacts, new: DataFacts) -> str:
    lines = []
    for name, before, after in (("training", old.train, new.train), ("validation", old.validation, new.validation)):
        for key in ("num_rows", "num_tokens", "supervised_tokens"):
            first, second = getattr(before, key, 0), getattr(after, key, 0)
            if first != second:
                lines.append(f"{name} {key.removeprefix('num_').replace('_', ' ')}: {first} -> {second}")
    return "; ".join(lines) or "as many rows and tokens, but other content, tokenizer or chat template"


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

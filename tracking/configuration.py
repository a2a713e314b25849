"""The configuration of a run for trackers: recipe, facts of the plan, and the summary of the receipts."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.configs.plan import Plan
from tunesmith.rundir.paths import RunDir
from tunesmith.tracking.redaction import values_without_secrets

_MODEL_FACTS = {
    *("source", "fingerprint", "model_type", "num_layers", "hidden_size", "vocab_size"),
    *("num_params", "num_trained_params", "num_active_params", "num_experts"),
}
_SPLIT_FACTS = {"num_rows", "num_samples", "num_tokens", "supervised_tokens", "longest_tokens"}


def configuration_of(run: RunDir, plan: Plan) -> dict[str, Any]:
    """Return the sections recipe, plan and receipts as JSON values, without credentials.

    The trackers themselves are not part of it: where a run is tracked does not describe it.
    """
    recipe = plan.recipe.model_dump(mode="json", exclude={"tracking"})
    splits = {
        name: split.model_dump(mode="json", include=_SPLIT_FACTS)
        for name, split in (("train", plan.data.train), ("validation", plan.data.validation))
        if split is not None
    }
    facts = {
        "tunesmith_version": plan.tunesmith_version,
        "model": plan.model.model_dump(mode="json", include=_MODEL_FACTS),
        "data": {"fingerprint": plan.data.fingerprint, **splits, **_mixture(plan)},
        "batch": plan.batch.model_dump(mode="json"),
        "compute": plan.compute.model_dump(mode="json"),
        "zero_stage": plan.parallelism.zero_stage,
    }
    return values_without_secrets({"recipe": recipe, "plan": facts, "receipts": receipts_of(run)})


def _mixture(plan: Plan) -> dict[str, Any]:
    """Samples per epoch by data set; empty without a mixture."""
    if plan.data.epoch_samples is None:
        return {}
    return {"epoch_samples": plan.data.epoch_samples, "mixture": {d.name: d.samples_per_epoch for d in plan.data.mixed}}


def receipts_of(run: RunDir) -> dict[str, Any]:
    """The counts of receipts/summary.json, without examples of rows; empty if it is missing or damaged."""
    try:
        summary = json.loads((run.receipts / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return _without_lists(summary) if isinstance(summary, dict) else {}


def flat(values: Mapping[str, Any], separator: str = ".", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of every value of nested mappings; lists are values."""
    for key, value in values.items():
        path = f"{prefix}{separator}{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from flat(value, separator, path)
        else:
            yield path, value


def _without_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_lists(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if not isinstance(value, list)
    }

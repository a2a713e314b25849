"""LLaMA-Factory's mixing of data sets: `mix_strategy` and `interleave_probs` become weights of the data sets."""

from dataclasses import replace

from tunesmith.configs.migration.draft import Draft
from tunesmith.configs.migration.rows import RowSet

_EPOCHS = {"interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}
"""data.mixing.epoch_samples by strategy."""
_ONCE = ("concat", "interleave_once")
"""Strategies that use every row once per epoch."""


def with_weights(draft: Draft, sets: list[RowSet], names: list[str]) -> list[RowSet]:
    """Return the training data sets with weights, if the configuration interleaves them, and set the length of an
    epoch. names: all data sets of the configuration; fewer in `sets` if some are errors."""
    strategy = str(draft.source.get("mix_strategy", "concat"))
    given = draft.source.get("interleave_probs")
    if strategy in _ONCE or len(names) < 2:
        for key in ("mix_strategy", "interleave_probs"):
            if draft.source.has(key):
                draft.drop(key, "every row of the data sets is used once per epoch, in random order")
        return sets
    if strategy not in _EPOCHS:
        draft.choose("mix_strategy", strategy, [*_ONCE, *_EPOCHS], "strategies with an equivalent are")
        return sets
    weights = _probabilities(draft, given, len(names))
    if weights is None or len(sets) < len(names):
        return sets
    note = "shares are exact after every sample, not random"
    draft.set("data.mixing.epoch_samples", _EPOCHS[strategy], "mix_strategy", note=note)
    return [replace(each, weight=weight) for each, weight in zip(sets, weights, strict=True)]


def _probabilities(draft: Draft, given: object, count: int) -> list[float] | None:
    """Return a weight for each data set: equal ones if none are given. None if they are wrong, which is recorded."""
    if given is None:
        return [1.0] * count
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
    try:
        weights = [float(str(part)) for part in parts]
    except ValueError:
        weights = []
    if len(weights) != count or min(weights) < 0 or not sum(weights) > 0:
        what = f"`interleave_probs: {given}` is no list of {count} probabilities"
        draft.fail("interleave_probs", what, "write one for each data set, such as 0.7,0.3")
        return None
    return weights

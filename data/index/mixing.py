"""The shares of the data sets in a mixture: how many samples of an epoch each of them has.

Proportions are exact fractions until they are rounded to whole samples of an epoch, which the plan states. Everything
later follows from these integers, so that rounding of floating-point numbers cannot change the order of a run.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from tunesmith.configs.plan import DataFacts, DataSetFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.data import Mixing
from tunesmith.errors import InputError

MAX_PASSES = 1000
"""Limit of the passes over a data set in one epoch: with epoch_samples: all_exhausted, a weight that is too small for a
large data set would repeat the others without end."""


def with_shares(facts: DataFacts, recipe: Recipe) -> DataFacts:
    """Return the facts of a mixture with the samples per epoch of each data set; the same facts without a mixture.

    Raises InputError if a data set has no usable rows or would have no sample in an epoch.
    """
    sets = recipe.data.training_sets
    if not sets:
        return facts
    parts, others = facts.datasets[: len(sets)], facts.datasets[len(sets) :]
    weights = [each.weight for each in sets]
    if empty := [p.name for p, weight in zip(parts, weights, strict=True) if weight != 0 and not p.num_samples]:
        raise InputError(
            f"no row of the data set {empty[0]} can be used for training",
            where=f"key data.train, data set {empty[0]}",
            remedy="check its rows with `tunesmith data check`, or remove it",
        )
    mixing = recipe.data.mixing or Mixing()
    shares = proportions([part.num_samples for part in parts], weights, mixing.temperature)
    length = epoch_length([part.num_samples for part in parts], shares, mixing.epoch_samples)
    counts = apportioned(length, shares)
    for part, share, count in zip(parts, shares, counts, strict=True):
        _require_sensible(part, share, count, length)
    _require_countable_labels(recipe, parts, counts)
    mixed = [part.model_copy(update={"samples_per_epoch": n}) for part, n in zip(parts, counts, strict=True)]
    return facts.model_copy(update={"datasets": [*mixed, *others], "epoch_samples": length})


def proportions(
    sizes: Sequence[int], weights: Sequence[float | None], temperature: float | None = None
) -> list[Fraction]:
    """Return the share of each data set; they sum to 1. sizes: numbers of samples. weights: all or none are None.

    With weights the shares are proportional to them. Otherwise to n^(1/T) (temperature-scaled mixing of Raffel et al.
    2020, arXiv:1910.10683; alpha of Conneau et al. 2020, arXiv:1911.02116, and of Xue et al. 2021, arXiv:2010.11934, is
    1/T), T = 1 if temperature is None. Raises ValueError if all would be 0.
    """
    given = [weight for weight in weights if weight is not None]
    if given:
        parts = [Fraction(str(weight)) for weight in given]  # as written: 0.1 is one tenth
    elif temperature is None or temperature == 1:
        parts = [Fraction(size) for size in sizes]
    else:  # relative to the largest, and to 12 digits, on which all math libraries agree
        largest = max(sizes)
        powers = [(size / largest) ** (1 / temperature) if size else 0.0 for size in sizes]
        parts = [Fraction(f"{power:.12e}") for power in powers]
    total = sum(parts)
    if not total:
        raise ValueError("no data set has a share")
    return [part / total for part in parts]


def epoch_length(sizes: Sequence[int], shares: Sequence[Fraction], rule: str | int) -> int:
    """Return the samples of an epoch, at least 1. rule: as data.mixing.epoch_samples. Data sets without a share do not
    count."""
    if isinstance(rule, int):
        return rule
    used = [(size, share) for size, share in zip(sizes, shares, strict=True) if share]
    if rule == "total":
        return sum(size for size, _ in used)
    if rule == "first_exhausted":
        return max(1, min(math.floor(size / share) for size, share in used))
    return max(math.ceil(size / share) for size, share in used)


def apportioned(length: int, shares: Sequence[Fraction]) -> list[int]:
    """Divide samples by the method of largest remainders (Hamilton's): every count differs from length * share by less
    than 1, and they sum to length."""
    exact = [length * share for share in shares]
    counts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda number: (counts[number] - exact[number], number))
    for number in by_remainder[: length - sum(counts)]:
        counts[number] += 1
    return counts


def _require_countable_labels(recipe: Recipe, parts: Sequence[DataSetFacts], counts: Sequence[int]) -> None:
    """Raise InputError if the weights of labels would be computed from rows that are not used equally often."""
    is_balanced = recipe.task_facts.is_classifier and recipe.classification.class_weights == "balanced"
    if is_balanced and any(count != part.num_samples for part, count in zip(parts, counts, strict=True)):
        raise InputError(
            "balanced class weights count every training row once, but the data sets of the mixture are used "
            "unequally often",
            where="key classification.class_weights",
            remedy="list a weight for each label, or mix the data sets by size (no weights, temperature 1)",
        )


def _require_sensible(part: DataSetFacts, share: Fraction, count: int, length: int) -> None:
    if share and not count:
        raise InputError(
            f"the data set {part.name} has no sample in an epoch of {length:,} (its share is {float(share):.2g})",
            where=f"key data.train, data set {part.name}",
            remedy="raise its weight, or set data.mixing.epoch_samples to a larger number or to all_exhausted",
        )
    if count > MAX_PASSES * max(1, part.num_samples):
        raise InputError(
            f"an epoch of {length:,} samples would use each sample of the data set {part.name} "
            f"{count // part.num_samples:,} times",
            where="key data.mixing.epoch_samples",
            remedy="set it to total or to a number, or change the weights",
        )

"""Shares of data sets: by weight or temperature, rounded to whole samples of an epoch."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.configs.plan import DataFacts, DataSetFacts, SplitFacts
from tunesmith.configs.recipe import Recipe
from tunesmith.data.index.mixing import apportioned, epoch_length, proportions, with_shares
from tunesmith.errors import InputError


def facts_of(*sizes: int) -> DataFacts:
    """Facts of data sets a, b, ... with these numbers of samples."""
    split = SplitFacts(
        index="/i", num_rows=1, num_samples=sum(sizes), num_tokens=1, supervised_tokens=1, longest_tokens=1
    )
    sets = [
        DataSetFacts(name="abcdef"[n], row_ranges=[(n, n + 1)], first_sample=sum(sizes[:n]), num_samples=size)
        for n, size in enumerate(sizes)
    ]
    return DataFacts(
        fingerprint="f",
        train=split,
        validation=None,
        num_rejected=0,
        num_dropped=0,
        num_truncated=0,
        num_duplicates=0,
        datasets=sets,
    )


def recipe_of(*sets: dict, mixing: dict | None = None, **sections) -> Recipe:
    train = [{"path": f"{'abcdef'[n]}.jsonl", **each} for n, each in enumerate(sets)]
    return Recipe.model_validate(
        {
            "name": "t",
            "model": {"base": "m"},
            "method": {"kind": "full"},
            "data": {"train": train, "mixing": mixing},
            **sections,
        }
    )


def samples_per_epoch(sizes: list[int], *sets: dict, mixing: dict | None = None) -> list[int]:
    planned = with_shares(facts_of(*sizes), recipe_of(*sets, mixing=mixing))
    counts = [each.samples_per_epoch for each in planned.datasets]
    assert sum(counts) == planned.epoch_samples == planned.samples_per_epoch
    return counts


@given(st.integers(1, 10**6), st.lists(st.fractions(0, 1, max_denominator=997), min_size=1, max_size=8).filter(any))
@settings(max_examples=200)
def test_rounded_shares_differ_by_less_than_one_sample_and_sum_to_the_epoch(length, parts):
    shares = [part / sum(parts) for part in parts]
    counts = apportioned(length, shares)
    assert sum(counts) == length
    assert all(abs(count - length * share) < 1 for count, share in zip(counts, shares, strict=True))
    assert all(count == 0 for count, share in zip(counts, shares, strict=True) if not share)


def test_without_weights_every_sample_is_used_once_per_epoch():
    assert samples_per_epoch([700, 20, 3], {}, {}, {}) == [700, 20, 3]


def test_weights_are_the_proportions_whatever_the_sizes():
    assert samples_per_epoch([700, 20], {"weight": 3}, {"weight": 1}) == [540, 180]
    assert proportions([5, 9], [0.1, 0.2]) == [Fraction(1, 3), Fraction(2, 3)]  # as written, not as binary fractions


def test_a_weight_of_zero_is_not_trained():
    assert samples_per_epoch([70, 20, 5], {"weight": 1}, {"weight": 0}, {"weight": 1}) == [38, 0, 37]


def test_a_temperature_raises_the_share_of_small_data_sets():
    sizes = [10_000, 100]
    assert samples_per_epoch(sizes, {}, {}, mixing={"temperature": 1}) == sizes
    assert samples_per_epoch(sizes, {}, {}, mixing={"temperature": 2}) == [9182, 918]  # 100 : 10 of 10,100
    # 10,000^(1/5) : 100^(1/5) = 6.3096 : 2.5119, as in XLM-R with alpha = 1 / T = 0.2
    assert samples_per_epoch(sizes, {}, {}, mixing={"temperature": 5}) == [7224, 2876]
    assert samples_per_epoch(sizes, {}, {}, mixing={"temperature": 1e6}) == [5050, 5050]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("total", [40, 80]),
        ("first_exhausted", [10, 20]),  # b has 20 samples, which are two thirds of 30
        ("all_exhausted", [100, 200]),  # a has 100 samples, which are one third of 300
        (9, [3, 6]),
    ],
)
def test_an_epoch_ends_by_rule(rule, expected):
    sets = {"weight": 1}, {"weight": 2}
    assert samples_per_epoch([100, 20], *sets, mixing={"epoch_samples": rule}) == expected


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 9)), min_size=1, max_size=6).filter(
        lambda x: any(w for _, w in x)
    )
)
@settings(max_examples=200)
def test_exhausted_means_used_completely(sets):
    sizes, weights = zip(*sets, strict=True)
    shares = proportions(sizes, weights)
    used = [number for number, weight in enumerate(weights) if weight]
    first = apportioned(epoch_length(sizes, shares, "first_exhausted"), shares)
    every = apportioned(epoch_length(sizes, shares, "all_exhausted"), shares)
    assert sum(first) == 1 or all(first[number] <= sizes[number] for number in used)
    assert all(every[number] >= sizes[number] for number in used)


def test_a_data_set_without_usable_rows_is_an_error():
    with pytest.raises(InputError, match="no row of the data set b can be used"):
        samples_per_epoch([5, 0], {}, {})
    assert samples_per_epoch([5, 0], {"weight": 1}, {"weight": 0}) == [5, 0]


def test_a_data_set_that_would_never_be_used_is_an_error():
    with pytest.raises(InputError, match=r"b has no sample in an epoch of 10 \(its share is 0\.01\)") as caught:
        samples_per_epoch([5, 5], {"weight": 99}, {"weight": 1})
    assert "all_exhausted" in caught.value.remedy


def test_an_epoch_that_repeats_a_data_set_without_end_is_an_error():
    with pytest.raises(InputError, match="each sample of the data set b 4,999 times"):
        samples_per_epoch([5000, 1], {"weight": 1}, {"weight": 4999 / 5000}, mixing={"epoch_samples": "all_exhausted"})


def test_balanced_class_weights_need_data_sets_that_are_used_equally_often():
    sections = {"task": "classification", "classification": {"class_weights": "balanced"}}
    assert with_shares(facts_of(6, 3), recipe_of({}, {}, **sections)).epoch_samples == 9
    with pytest.raises(InputError, match="unequally often"):
        with_shares(facts_of(6, 3), recipe_of({"weight": 1}, {"weight": 1}, **sections))

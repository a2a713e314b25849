"""The schedule of a mixture: every prefix has the planned shares to within one sample, for any counts."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.data.index.interleaving import VARIED, Interleaving

counts = st.lists(st.one_of(st.integers(0, 4), st.integers(0, 60), st.integers(0, 700)), min_size=1, max_size=9).filter(
    any
)


@given(counts)
@example([1])
@example([0, 5, 0])
@example([1, 1000])
@example([3, 3, 3, 1])
@example([5000, 5000])
@example([7, 700, 49, 343, 1])
@settings(max_examples=200, deadline=None)
def test_every_prefix_has_its_shares_to_within_one_sample(sizes):
    interleaving = Interleaving(sizes)
    length, sources = sum(sizes), interleaving.sources(0, sum(sizes))
    taken = np.cumsum(sources[:, None] == np.arange(len(sizes)), axis=0)
    places = np.arange(1, length + 1)[:, None]
    # Multiplied by the length, so that the comparison is exact.
    assert (np.abs(taken * length - places * np.array(sizes)) < length).all()
    assert taken[-1].tolist() == sizes


@given(counts, st.data())
@settings(max_examples=100, deadline=None)
def test_any_part_equals_that_part_of_the_whole(sizes, data):
    length = sum(sizes)
    whole = Interleaving(sizes).sources(0, length)
    fresh = Interleaving(sizes)
    for _ in range(3):
        start = data.draw(st.integers(0, length))
        stop = data.draw(st.integers(start, length))
        assert fresh.sources(start, stop).tolist() == whole[start:stop].tolist()
        assert fresh.counts_before(stop).tolist() == np.bincount(whole[:stop], minlength=len(sizes)).tolist()


@given(counts, st.integers(2, 50))
@settings(max_examples=50, deadline=None)
def test_multiples_of_the_counts_keep_the_bound_beyond_the_repeated_part(sizes, factor):
    factor *= VARIED // sum(sizes) + 1
    interleaving, length = Interleaving([size * factor for size in sizes]), sum(sizes) * factor
    for position in {0, VARIED - 1, VARIED, VARIED + 1, length // 2, length - 1, length}:
        taken = interleaving.counts_before(position)
        assert int(taken.sum()) == position
        assert (np.abs(taken * length - position * factor * np.array(sizes)) < length).all()


def test_equal_shares_do_not_give_one_source_the_same_place_in_every_round():
    sources = Interleaving([5000] * 4).sources(0, 20_000).reshape(-1, 4)
    assert (np.sort(sources, axis=1) == np.arange(4)).all()
    for source in range(4):
        firsts = (sources[:, 0] == source).mean()
        assert 0.2 < firsts < 0.3  # 0.25 of 5,000 rounds, of which 4,096 differ: 3 standard deviations are 0.02


def test_the_schedule_is_the_same_on_every_machine_and_in_every_version():
    assert Interleaving([6, 3, 1]).sources(0, 10).tolist() == PINNED
    assert Interleaving([600_000, 300_000, 100_000]).sources(500_000, 500_010).tolist() == PINNED_FAR


PINNED = [0, 1, 0, 0, 1, 0, 0, 1, 2, 0]
PINNED_FAR = [0, 1, 0, 0, 1, 0, 0, 2, 1, 0]


@pytest.mark.parametrize("sizes", [[], [0, 0], [3, -1], [1] * 65_537])
def test_counts_that_are_no_mixture_raise_value_error(sizes):
    with pytest.raises(ValueError, match="counts"):
        Interleaving(sizes)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 11)])
def test_positions_outside_the_epoch_raise_value_error(start, stop):
    with pytest.raises(ValueError, match="outside an epoch of 10"):
        Interleaving([6, 3, 1]).sources(start, stop)

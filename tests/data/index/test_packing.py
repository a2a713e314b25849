import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.index.packing import pack


@given(st.integers(1, 300).flatmap(lambda size: st.tuples(st.just(size), st.lists(st.integers(1, size), max_size=200))))
def test_every_document_is_in_one_bin_and_no_bin_overflows(case):
    capacity, lengths = case
    bins = pack(np.array(lengths, np.int64), capacity)
    assert len(bins) == len(lengths)
    if lengths:
        fill = np.bincount(bins, lengths)
        assert sorted(set(bins.tolist())) == list(range(len(fill)))
        assert fill.max() <= capacity
        assert fill.sum() == sum(lengths)
        # A bin is closed when nothing more fits: no two bins' documents would fit into one.
        assert len(fill) == 1 or np.sort(fill)[:2].sum() > capacity


@pytest.mark.parametrize(("capacity", "median", "spread"), [(512, 90, 0.7), (2048, 300, 0.9), (8192, 400, 1.2)])
def test_padding_is_at_most_one_percent_on_realistic_lengths(capacity, median, spread):
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(np.log(median), spread, 5000)).astype(np.int64), 5, capacity)
    bins = pack(lengths, capacity)
    padding = 1 - lengths.sum() / ((bins.max() + 1) * capacity)
    assert 0 <= padding <= 0.01


def test_two_documents_that_fill_a_bin_exactly_are_preferred_to_a_longer_one():
    assert pack(np.array([10, 7, 5, 5, 3]), 10).tolist() == [0, 1, 2, 2, 1]
    assert pack(np.array([12, 7, 6, 2, 5, 9]), 20).tolist() == [0, 1, 0, 0, 2, 1]  # 12 + 6 + 2, not 12 + 7


def test_rows_of_about_half_a_sample_cause_little_padding():
    lengths = np.clip(np.random.default_rng(0).normal(200, 75, 10_000).astype(np.int64), 59, 512)
    padding = 1 - lengths.sum() / ((pack(lengths, 512).max() + 1) * 512)
    assert 0 <= padding <= 0.006


def test_packing_is_deterministic():
    lengths = np.random.default_rng(1).integers(1, 512, 2000)
    assert np.array_equal(pack(lengths, 512), pack(lengths.copy(), 512))
    assert pack(np.array([3, 5, 2, 5, 4]), 8).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("lengths", [[0, 3], [9]])
def test_lengths_that_fit_in_no_bin_raise_value_error(lengths):
    with pytest.raises(ValueError):
        pack(np.array(lengths), 8)

from collections import Counter
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.index.order import sample_at, samples_at


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 700))
@settings(max_examples=60)
def test_the_order_is_a_permutation(seed, epoch, num_samples):
    order = [sample_at(seed, epoch, position, num_samples) for position in range(num_samples)]
    assert sorted(order) == list(range(num_samples))


def test_the_order_is_the_same_on_every_machine_and_in_every_version():
    assert [sample_at(7, 0, position, 10) for position in range(10)] == PINNED
    assert sample_at(0, 0, 123_456_789, 10**12) == PINNED_FAR


PINNED = [2, 3, 4, 9, 5, 0, 7, 1, 6, 8]
PINNED_FAR = 651467640226


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 2**50), st.lists(st.floats(0, 1), max_size=20))
@settings(max_examples=200)
def test_vectorized_order_equals_single_positions(seed, epoch, num_samples, shares):
    positions = np.array([min(int(share * num_samples), num_samples - 1) for share in shares], np.int64)
    expected = [sample_at(seed, epoch, position, num_samples) for position in positions.tolist()]
    assert samples_at(seed, epoch, positions, num_samples).tolist() == expected


def test_every_epoch_and_seed_has_a_different_order():
    orders = {
        tuple(sample_at(seed, epoch, position, 50) for position in range(50)) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


def test_all_orders_of_a_few_samples_are_about_equally_frequent():
    draws = 12_000
    counts = Counter(tuple(sample_at(seed, 3, position, 5) for position in range(5)) for seed in range(draws))
    expected = draws / factorial(5)
    chi_square = sum((counts.get(order, 0) - expected) ** 2 / expected for order in counts) + expected * (
        120 - len(counts)
    )
    assert chi_square < 180  # 119 degrees of freedom: 99.99% of random draws are below 184; seeds are fixed


def test_neighboring_positions_have_distant_samples():
    gaps = [abs(sample_at(1, 0, p, 10_000) - sample_at(1, 0, p + 1, 10_000)) for p in range(2_000)]
    assert 3_000 < sum(gaps) / len(gaps) < 3_700  # a third of the range for independent draws


@pytest.mark.parametrize("position", [-1, 10])
def test_a_position_outside_the_epoch_raises_value_error(position):
    with pytest.raises(ValueError, match="outside"):
        sample_at(0, 0, position, 10)
    with pytest.raises(ValueError, match="outside"):
        samples_at(0, 0, np.array([3, position]), 10)

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.rows.split import first_equals, held_out

contents = st.lists(st.integers(0, 30), min_size=1, max_size=120)


def keys(content: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the two halves of content keys; different contents may have an equal half, but not equal keys."""
    values = np.array(content, np.uint64)
    return values // np.uint64(5) * np.uint64(0x9E3779B97F4A7C15), values % np.uint64(5)


@given(contents, st.floats(0.01, 0.9), st.integers(0, 5))
def test_equal_rows_are_in_the_same_split(content, fraction, seed):
    rows = np.arange(len(content))
    chosen = held_out(*keys(content), rows, fraction, seed)
    held = {content[row] for row in chosen.tolist()}
    stay = {content[row] for row in set(rows.tolist()) - set(chosen.tolist())}
    assert not held & stay
    if len(set(content)) >= 2:
        assert held
        assert stay
    else:
        assert not held


@given(st.integers(2, 400), st.floats(0.01, 0.99), st.integers(0, 5))
def test_the_requested_fraction_of_distinct_rows_is_held_out(count, fraction, seed):
    chosen = held_out(*keys(list(range(count))), np.arange(count), fraction, seed)
    assert len(chosen) == min(max(1, round(fraction * count)), count - 1)
    assert chosen.tolist() == sorted(set(chosen.tolist()))


@given(contents, st.randoms())
def test_the_split_does_not_depend_on_the_row_order(content, random):
    shuffled = content.copy()
    random.shuffle(shuffled)
    one = held_out(*keys(content), np.arange(len(content)), 0.3, 1)
    other = held_out(*keys(shuffled), np.arange(len(content)), 0.3, 1)
    assert sorted(content[row] for row in one) == sorted(shuffled[row] for row in other)


def test_another_seed_holds_out_other_rows():
    high, low = keys(list(range(500)))
    choices = {tuple(held_out(high, low, np.arange(500), 0.1, seed)) for seed in range(5)}
    assert len(choices) == 5


def test_a_large_group_of_equal_rows_does_not_dominate_the_split():
    content = [0] * 500 + list(range(1, 501))
    chosen = held_out(*keys(content), np.arange(1000), 0.1, 0)
    assert len(chosen) == 100


def test_only_the_given_rows_are_held_out():
    chosen = held_out(*keys(list(range(20))), np.array([3, 5, 7, 11]), 0.5, 0)
    assert len(chosen) == 2
    assert set(chosen.tolist()) <= {3, 5, 7, 11}


@given(contents, st.data())
def test_each_row_refers_to_the_first_usable_equal_row(content, data):
    usable = data.draw(st.lists(st.booleans(), min_size=len(content), max_size=len(content)))
    first = first_equals(*keys(content), np.array(usable))
    for row, value in enumerate(content):
        earlier = [other for other in range(row) if usable[other] and content[other] == value]
        assert first[row] == (earlier[0] if usable[row] and earlier else -1)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.rows.near_duplicates import NEAR, SHINGLE, Near, near_duplicates, sketch


def near_in(documents: list[list[int]], rank=None) -> list[Near]:
    lengths = np.array([len(document) for document in documents], np.int64)
    tokens = np.array([token for document in documents for token in document], np.uint32)
    rows = np.arange(len(documents))
    return near_duplicates([sketch(tokens, lengths, rows)], rows if rank is None else np.array(rank))


def resemblance(one: list[int], other: list[int]) -> float:
    """The exact share of common shingles, which the sketches estimate."""
    sets = [{tuple(d[i : i + SHINGLE]) for i in range(len(d) - SHINGLE + 1)} for d in (one, other)]
    return len(sets[0] & sets[1]) / max(1, len(sets[0] | sets[1]))


def random_document(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50_000, length).tolist()


@pytest.mark.parametrize("length", [20, 40, 100, 500, 3000])
def test_a_row_with_one_changed_token_is_a_near_duplicate_and_other_rows_are_not(length):
    documents = [random_document(seed, length) for seed in range(30)]
    changed = documents[7].copy()
    changed[length // 2] += 1
    pairs = near_in([*documents, changed])
    expected = resemblance(documents[7], changed)
    assert [(near.row, near.other) for near in pairs] == ([(30, 7)] if expected >= NEAR else [])
    assert all(abs(near.share - expected) < 0.2 for near in pairs)
    assert length < 40 or pairs


def test_text_common_to_all_rows_is_ignored():
    prompt = random_document(0, 300)
    documents = [prompt + random_document(seed, 30) for seed in range(1, 400)]
    assert near_in(documents) == []
    changed = documents[5].copy()
    changed[-1] += 1
    assert [(near.row, near.other) for near in near_in([*documents, changed])] == [(399, 5)]


def test_rows_are_compared_with_rows_of_lower_rank():
    one = random_document(1, 200)
    other = [*one[:-1], 1]
    assert [(near.row, near.other) for near in near_in([one, other])] == [(1, 0)]
    assert [(near.row, near.other) for near in near_in([one, other], rank=[1, 0])] == [(0, 1)]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), max_size=12))
@settings(max_examples=80)
def test_short_rows_are_compared_exactly_and_shingles_never_cross_rows(documents):
    for near in near_in(documents):
        assert resemblance(documents[near.row], documents[near.other]) >= NEAR
        assert near.other < near.row


def test_rows_of_different_parts_are_compared():
    documents = [random_document(3, 100), random_document(3, 100)[:-1]]
    parts = [sketch(np.array(d, np.uint32), np.array([len(d)]), np.array([row])) for row, d in enumerate(documents)]
    assert [(near.row, near.other) for near in near_duplicates(parts, np.arange(2))] == [(1, 0)]
    assert near_duplicates([], np.arange(0)) == []

"""The order of a mixture: passes over each data set, the same for any batches and any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.index.loader import Loader
from tunesmith.data.index.order import MixedOrder, PlainOrder, Share, samples_at
from tunesmith.data.index.token_index import TokenIndex, write_index


@st.composite
def mixtures(draw) -> list[Share]:
    """One to five data sets of 1 to 12 samples, of which an epoch uses any number."""
    shares, first = [], 0
    for number in range(draw(st.integers(1, 5))):
        size = draw(st.integers(1, 12))
        shares.append(Share(f"set-{number}", first, size, draw(st.integers(1, 30))))
        first += size
    return shares


def of_share(samples: np.ndarray, share: Share) -> np.ndarray:
    return samples[(samples >= share.first_sample) & (samples < share.first_sample + share.num_samples)]


@given(mixtures(), st.integers(0, 2**63 - 1))
@settings(max_examples=25, deadline=None)
def test_a_data_set_is_used_completely_before_it_starts_again_in_another_order(shares, seed):
    order = MixedOrder(seed, shares)
    samples = order.samples(0, 3 * order.epoch_samples)
    assert len(samples) == 3 * sum(share.samples_per_epoch for share in shares)
    for share in shares:
        used = of_share(samples, share)
        assert len(used) == 3 * share.samples_per_epoch
        for number, start in enumerate(range(0, len(used), share.num_samples)):
            expected = samples_at(seed, number, np.arange(share.num_samples), share.num_samples, share.name)
            part = used[start : start + share.num_samples] - share.first_sample
            assert part.tolist() == expected[: len(part)].tolist()
            assert sorted(expected.tolist()) == list(range(share.num_samples))


@given(mixtures(), st.data())
@settings(max_examples=25, deadline=None)
def test_any_positions_equal_those_of_one_pass_through_the_run(shares, data):
    order, number = MixedOrder(7, shares), 3 * sum(share.samples_per_epoch for share in shares)
    whole = order.samples(0, number)
    first = data.draw(st.integers(0, number))
    stop = data.draw(st.integers(first, number))
    assert MixedOrder(7, shares).samples(first, stop).tolist() == whole[first:stop].tolist()
    counted = {share.name: len(of_share(whole[:stop], share)) for share in shares}
    assert MixedOrder(7, shares).counts(stop) == counted


def test_two_data_sets_of_equal_size_have_different_orders():
    order = MixedOrder(0, [Share("a", 0, 50, 50), Share("b", 50, 50, 50)])
    samples = order.samples(0, 100)
    assert samples[samples < 50].tolist() != (samples[samples >= 50] - 50).tolist()


def test_a_plain_order_has_no_name_in_its_keys():
    assert PlainOrder(7, 10).samples(0, 10).tolist() == [2, 3, 4, 9, 5, 0, 7, 1, 6, 8]  # as pinned in test_order.py
    assert samples_at(7, 0, np.arange(10), 10, "a").tolist() != PlainOrder(7, 10).samples(0, 10).tolist()


def test_the_order_is_the_same_on_every_machine_and_in_every_version():
    order = MixedOrder(7, [Share("support", 0, 6, 9), Share("general", 6, 5, 3)])
    assert order.samples(0, 24).tolist() == PINNED


PINNED = [5, 3, 7, 1, 2, 0, 6, 4, 2, 5, 9, 4, 3, 0, 10, 1, 4, 5, 8, 3, 2, 1, 10, 0]


def test_a_used_data_set_without_samples_raises_value_error():
    with pytest.raises(ValueError, match="general has no samples"):
        MixedOrder(0, [Share("support", 0, 3, 3), Share("general", 3, 0, 1)])


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> TokenIndex:
    documents = [(range(3), [False, True, True], row) for row in range(30)]
    return write_index(tmp_path_factory.mktemp("i") / "i", documents, max_seq_len=8)


SHARES = [Share("a", 0, 20, 17), Share("b", 20, 7, 6), Share("c", 27, 3, 9)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_number_of_ranks_trains_on_the_same_samples_with_the_planned_shares(index, world_size):
    options = {"seed": 3, "epochs": 3, "global_batch_size": 4, "micro_batch_size": 2}
    order = MixedOrder(3, SHARES)
    ranks = [Loader(index, **options, rank=rank, world_size=world_size).with_order(order) for rank in range(world_size)]
    assert ranks[0].total_steps == 24
    seen: list[int] = []
    for step in range(1, ranks[0].total_steps + 1):
        batches = [rank.step_batch(step).samples for rank in ranks]
        together = [0] * sum(map(len, batches))
        for rank, batch in enumerate(batches):
            together[rank::world_size] = batch
        seen += together
        for share in SHARES:
            used = len(of_share(np.array(seen), share))
            assert abs(used * 32 - len(seen) * share.samples_per_epoch) < 32
    assert seen == order.samples(0, 96).tolist()
    assert ranks[0].step_batch(24).epoch == 3.0
    assert ranks[0].step_batch(4).epoch == 0.5

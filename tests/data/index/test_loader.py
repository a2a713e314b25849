import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.index.loader import IGNORED, Loader, micro_batch, split
from tunesmith.data.index.token_index import IndexWriter, Sample, TokenIndex, write_index


@pytest.fixture(scope="module")
def indexes(tmp_path_factory) -> dict[int, TokenIndex]:
    """Indexes of 1 to 13 samples of different lengths; token ids are unique within an index, row ids start at 100."""
    by_size = {}
    for num_samples in range(1, 14):
        documents, token = [], 0
        for row in range(num_samples):
            length = 2 + row * 7 % 5
            documents.append((range(token, token + length), [t % 3 != 0 for t in range(length)], 100 + row))
            token += length
        by_size[num_samples] = write_index(tmp_path_factory.mktemp("i") / "i", documents, max_seq_len=8)
    return by_size


shapes = st.fixed_dictionaries(
    {
        "num_samples": st.integers(1, 13),
        "epochs": st.integers(1, 3),
        "global_batch_size": st.integers(1, 9),
        "micro_batch_size": st.integers(1, 4),
        "world_size": st.integers(1, 5),
        "seed": st.integers(0, 99),
    }
)


def loaders(indexes, num_samples, world_size, **options):
    return [Loader(indexes[num_samples], rank=rank, world_size=world_size, **options) for rank in range(world_size)]


@given(shapes)
@settings(max_examples=150, deadline=None)
def test_every_position_is_trained_once_for_any_number_of_ranks(indexes, shape):
    ranks = loaders(indexes, **shape)
    per_epoch = [0] * shape["num_samples"]
    for step in range(1, ranks[0].total_steps + 1):
        batches = [rank.step_batch(step) for rank in ranks]
        together = ranks[0].step_samples(step).tolist()
        assert sorted(sample for batch in batches for sample in batch.samples) == sorted(together)
        for rank, batch in enumerate(batches):
            assert batch.samples == together[rank :: shape["world_size"]]
        for sample in together:
            per_epoch[sample] += 1
    assert per_epoch == [shape["epochs"]] * shape["num_samples"]


@given(shapes)
@settings(max_examples=150, deadline=None)
def test_ranks_agree_on_shares_and_totals(indexes, shape):
    index = indexes[shape["num_samples"]]
    ranks = loaders(indexes, **shape)
    for step in range(1, ranks[0].total_steps + 1):
        batches = [rank.step_batch(step) for rank in ranks]
        assert len({len(batch.micro_batches) for batch in batches}) == 1
        for batch in batches:
            assert batch.global_supervised_tokens == sum(b.supervised_tokens for b in batches)
            assert batch.global_num_tokens == sum(b.num_tokens for b in batches)
            real = [m for m in batch.micro_batches if not m.filler]
            assert sum(len(m.lengths) for m in real) == len(batch.samples)
            assert all(len(m.lengths) <= shape["micro_batch_size"] for m in real)
            assert batch.num_tokens == sum(len(m.tokens) for m in real)
            assert batch.supervised_tokens == sum(int((m.labels != IGNORED).sum()) for m in batch.micro_batches)
            assert batch.rows == [100 + sample for sample in batch.samples]
            tokens = np.concatenate([m.tokens for m in real]) if real else np.zeros(0)
            expected = [index.sample(sample).tokens for sample in batch.samples]
            assert tokens.tolist() == (np.concatenate(expected).tolist() if expected else [])


def test_a_step_does_not_depend_on_earlier_steps(indexes):
    options = {"seed": 3, "epochs": 3, "global_batch_size": 4, "micro_batch_size": 2}
    one, other = Loader(indexes[11], **options), Loader(indexes[11], **options)
    forward = [one.step_batch(step).samples for step in range(1, one.total_steps + 1)]
    backward = [other.step_batch(step).samples for step in range(other.total_steps, 0, -1)]
    assert forward == backward[::-1]


def test_labels_follow_the_mask_and_never_cross_documents(tmp_path):
    documents = [([10, 11, 12], [True, True, True], 0), ([20, 21], [True, False], 1), ([30, 31], [True, True], 2)]
    index = write_index(tmp_path / "i", documents, max_seq_len=8, bins=[0, 0, 1])
    batch = micro_batch([index.sample(0), index.sample(1)])
    assert batch.tokens.tolist() == [10, 11, 12, 20, 21, 30, 31]
    assert batch.labels.tolist() == [11, 12, IGNORED, IGNORED, IGNORED, 31, IGNORED]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert (batch.lengths, batch.num_supervised, batch.filler) == ([3, 2, 2], 3, False)
    assert {array.dtype for array in (batch.tokens, batch.labels, batch.positions)} == {np.dtype(np.int64)}


def test_ranks_without_samples_get_fillers_without_targets(indexes):
    ranks = loaders(indexes, 3, 4, seed=0, epochs=1, global_batch_size=3, micro_batch_size=1)
    batch = ranks[3].step_batch(1)
    assert [m.filler for m in batch.micro_batches] == [True]
    assert (batch.micro_batches[0].labels == IGNORED).all()
    assert (batch.samples, batch.rows, batch.num_tokens, batch.supervised_tokens) == ([], [], 0, 0)
    assert batch.global_supervised_tokens == ranks[0].index.supervised_tokens


def test_the_last_step_may_be_smaller_and_completes_the_epoch(indexes):
    loader = Loader(indexes[10], seed=0, epochs=2, global_batch_size=8, micro_batch_size=8)
    assert loader.total_steps == 3
    assert len(loader.step_batch(3).samples) == 4
    assert [loader.step_batch(step).epoch for step in (1, 2, 3)] == [0.8, 1.6, 2.0]


def test_max_steps_may_end_the_run_within_an_epoch(indexes):
    loader = Loader(indexes[10], seed=0, epochs=5, global_batch_size=2, micro_batch_size=2, max_steps=7)
    assert loader.total_steps == 7
    for step in (0, 8):
        with pytest.raises(IndexError):
            loader.step_batch(step)


def test_resuming_at_any_of_millions_of_samples_takes_constant_time(tmp_path):
    writer = IndexWriter(tmp_path / "i")
    count = 2_000_000
    writer.add(np.zeros(2 * count, np.uint32), np.ones(2 * count), np.full(count, 2), np.arange(count))
    writer.finish(None, max_seq_len=8, fingerprint="")
    times = []
    for step in (1, 400_000, 700_000):
        before = time.process_time()
        loader = Loader(TokenIndex.open(tmp_path / "i"), seed=1, epochs=3, global_batch_size=8, micro_batch_size=8)
        loader.step_batch(step)
        times.append(time.process_time() - before)
    assert min(times) < 0.05, times  # the goal; about 1 ms on an idle machine


@pytest.mark.parametrize("wrong", [{"rank": 2}, {"rank": -1}, {"epochs": 0}, {"global_batch_size": 0}])
def test_invalid_arguments_raise_value_error(indexes, wrong):
    options = {"seed": 0, "epochs": 1, "global_batch_size": 4, "micro_batch_size": 2, "rank": 0, "world_size": 2}
    with pytest.raises(ValueError):
        Loader(indexes[5], **{**options, **wrong})


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_a_sequence_is_divided_between_its_documents(lengths, num_parts):
    total = sum(lengths)
    sample = Sample(np.arange(total), np.arange(total) % 3 != 0, lengths, list(range(len(lengths))))
    parts = split(sample, num_parts)
    assert 1 <= len(parts) <= num_parts
    assert [row for part in parts for row in part.rows] == sample.rows
    assert [length for part in parts for length in part.lengths] == lengths
    assert np.concatenate([part.tokens for part in parts]).tolist() == sample.tokens.tolist()
    assert np.concatenate([part.supervised for part in parts]).tolist() == sample.supervised.tolist()
    # Their middles lie in a range of that many tokens, so only the first and the last document can reach beyond it.
    assert all(sum(part.lengths) <= total / num_parts + max(lengths) for part in parts)
    assert max(len(part.lengths) for part in split(sample, 2 * total)) == 1


def test_passes_of_half_a_sequence_have_the_same_rows_and_targets(tmp_path):
    documents = [(range(10 * row, 10 * row + 4), [False, True, row % 2 == 0, True], row) for row in range(11)]
    index = write_index(tmp_path / "index", documents, max_seq_len=16, bins=[row // 4 for row in range(11)])
    for rank in (0, 1):
        whole = Loader(index, seed=1, epochs=2, global_batch_size=4, micro_batch_size=2, rank=rank, world_size=2)
        for step in range(1, whole.total_steps + 1):
            expected, batch = whole.step_batch(step), whole.with_passes(1, 2).step_batch(step)
            assert len(batch.micro_batches) == 2 * len(whole.with_passes(1, 1).step_batch(step).micro_batches)
            assert (batch.samples, batch.rows, batch.num_tokens) == (
                expected.samples,
                expected.rows,
                expected.num_tokens,
            )
            assert batch.supervised_tokens == expected.supervised_tokens > 0 or not batch.samples
            for name in ("tokens", "labels", "positions"):
                first, second = (
                    np.concatenate([getattr(m, name) for m in each.micro_batches if not m.filler] or [np.zeros(0)])
                    for each in (batch, expected)
                )
                assert first.tolist() == second.tolist()
            real = [m for m in batch.micro_batches if not m.filler]
            assert max((len(m.tokens) for m in real), default=0) <= 8

"""Unrelated pairs (prompts with the answers of other rows) do not depend on the number of ranks or micro-batch size."""

import numpy as np
import pytest

from tunesmith.data.index.loader import IGNORED, Loader
from tunesmith.data.index.token_index import write_index
from tunesmith.data.index.unrelated import ReferenceScores, unrelated_in, unrelated_sample

PROMPTS = [2, 5, 1, 3, 4, 2, 6]
ANSWERS = [3, 2, 4, 1, 5, 2, 3]


@pytest.fixture
def index(tmp_path):
    """Row n: prompt tokens 100 + n, answer tokens 200 + n, and a final token that is not trained."""
    rows = []
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        tokens = [100 + number] * prompt + [200 + number] * answer + [1]
        rows.append((tokens, [False] * prompt + [True] * answer + [False], number))
    return write_index(tmp_path / "index", rows, max_seq_len=9)


def test_a_pair_is_a_prompt_with_the_answer_of_another_row(index):
    pair = unrelated_sample(index, 1, 4)
    assert pair.tokens.tolist() == [101] * 5 + [204] * 4  # cut to max_seq_len
    assert pair.supervised.tolist() == [False] * 5 + [True] * 4
    assert pair.rows == [1]
    assert pair.lengths == [9]
    assert unrelated_in(index, 0).tokens.tolist() == [100] * 2 + [206] * 3 + [1]


def loaders(index, world_size: int, micro_batch_size: int, count: int) -> list[Loader]:
    scores = ReferenceScores(np.zeros(index.num_documents, np.float32), np.arange(count, dtype=np.float32))
    return [
        Loader(
            index,
            seed=3,
            epochs=2,
            global_batch_size=4,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            counts_samples=True,
            reference=scores,
            unrelated=True,
        )
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_the_pairs_of_a_step_do_not_depend_on_ranks_or_micro_batches(index, world_size, micro_batch_size):
    count = 14
    ranks = loaders(index, world_size, micro_batch_size, count)
    assert ranks[0].num_unrelated == count
    position = 0
    for step in range(1, ranks[0].total_steps + 1):
        samples = ranks[0].step_samples(step)
        expected = {}
        for place, sample in enumerate(samples):
            expected[position] = (100 + sample, 200 + samples[place - 1])
            position += 1
        pairs = {}
        for loader in ranks:
            batch = loader.step_batch(step)
            assert batch.global_num_samples == batch.global_targets == len(samples)
            for micro in batch.unrelated:
                assert micro.reference is not None
                assert len(micro.lengths) <= micro_batch_size
                stops = np.cumsum(micro.lengths)
                for start, stop, value in zip(stops - micro.lengths, stops, micro.reference, strict=True):
                    answer = set(micro.labels[start:stop].tolist()) - {IGNORED}
                    pairs[int(value)] = (int(micro.tokens[start]), *answer)
        assert pairs == expected


def test_other_tasks_have_no_unrelated_pairs(index):
    assert Loader(index, seed=0, epochs=1, global_batch_size=4, micro_batch_size=4).step_batch(1).unrelated is None

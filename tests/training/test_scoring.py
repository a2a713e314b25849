"""Scoring between steps: the queue of an attempt is its own, and only what earlier attempts left is removed."""

from dataclasses import replace

import pytest

from tests.training.attempts import Attempt
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.evaluation.score import score_index
from tunesmith.rundir.fence import Superseded, begin_attempt
from tunesmith.rundir.paths import RunDir
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.rank_context import RankContext
from tunesmith.training.scoring import score_on_ranks


class FirstOfTwo(Ranks):
    """Rank 0 of two, of which the other one is late: it takes no batch."""

    def from_first(self, decide):
        return decide()

    def barrier(self) -> None:
        pass


@pytest.fixture
def context(trained, tmp_path) -> RankContext:
    run = RunDir(tmp_path / "run")
    run.create()
    attempt = Attempt(trained, begin_attempt(run, 2), f"file://{tmp_path}/mirror")
    return replace(attempt.context, attempt=2, ranks=FirstOfTwo(0, 0, 2))


def test_queues_of_earlier_attempts_are_removed_and_the_directory_around_them_stays(context, trained):
    index = TokenIndex.open(trained.run.root / "index")
    leftover = context.run.scoring / "1-validation-during-3" / "results"
    leftover.mkdir(parents=True)
    scores = score_on_ranks(context, index, "validation-during-3")
    assert scores is not None
    assert scores.loss_sum.tolist() == score_index(context.engine.loss_module, index).loss_sum.tolist()
    assert list(context.run.scoring.iterdir()) == []


def test_a_queue_of_a_newer_attempt_is_not_deleted(context, trained):
    index = TokenIndex.open(trained.run.root / "index")
    begin_attempt(context.run, 3)
    newer = context.run.scoring / "3-validation-during-3" / "results"
    newer.mkdir(parents=True)
    with pytest.raises(Superseded, match="attempt 3"):
        score_on_ranks(context, index, "validation-during-3")
    assert newer.is_dir()


def test_only_the_own_queue_is_deleted_afterwards(context, trained):
    index = TokenIndex.open(trained.run.root / "index")
    newer = context.run.scoring / "3-validation-during-3"
    context.engine.loss_module.register_forward_pre_hook(lambda *_: newer.mkdir(exist_ok=True))
    score_on_ranks(context, index, "validation-during-3")
    assert list(context.run.scoring.iterdir()) == [newer]

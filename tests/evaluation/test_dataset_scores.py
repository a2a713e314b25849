"""The validation loss of each data set, from the sums of its rows."""

import numpy as np
import pytest

from tunesmith.configs.plan import DataSetFacts
from tunesmith.evaluation.held_out import dataset_facts, token_facts
from tunesmith.evaluation.results import ExampleScores
from tunesmith.rundir.events import EvaluationEvent, Scores
from tunesmith.tracking.metrics import points_of

SCORES = ExampleScores(
    row=np.array([2, 5, 9, 30, 31]),
    loss_sum=np.array([2.0, 6.0, 5.0, 1.0, 0.0]),
    num_tokens=np.array([4, 4, 2, 8, 0]),
    num_correct=np.array([1, 1, 1, 6, 0]),
)
SETS = [
    DataSetFacts(name="a", row_ranges=[(0, 6), (30, 31)]),
    DataSetFacts(name="b", row_ranges=[(6, 20)]),
    DataSetFacts(name="without rows", row_ranges=[(20, 30)]),
    DataSetFacts(name="without targets", row_ranges=[(31, 32)]),
]


def test_each_data_set_has_the_loss_of_its_own_rows():
    facts = token_facts(SCORES, None, SETS)
    assert facts["loss"] == pytest.approx(14 / 18)
    assert list(facts["datasets"]) == ["a", "b"]  # the others have no supervised token
    a, b = facts["datasets"].values()
    assert (a["loss"], a["num_examples"], a["num_tokens"]) == (pytest.approx(9 / 16), 3, 16)
    assert (b["loss"], b["num_examples"], b["num_tokens"], b["loss_error"]) == (2.5, 1, 2, None)
    assert a["token_accuracy"] == pytest.approx(8 / 16)


def test_without_named_data_sets_the_event_is_as_before():
    assert "datasets" not in token_facts(SCORES, None)
    assert dataset_facts(SCORES, SETS[2:]) == {}


def test_the_event_gives_trackers_one_loss_per_data_set():
    scores = Scores.from_json(token_facts(SCORES, None, SETS))
    event = EvaluationEvent(time=1.0, step=3, scores=scores, seconds=0.1, best=True, when="during")
    read = EvaluationEvent.from_json({key: value for key, value in event.to_json().items() if key != "kind"})
    assert read.scores.dataset_losses() == {"a": pytest.approx(9 / 16), "b": 2.5}
    points = {point.key: point.value for point in points_of(read) if "datasets" in point.key}
    assert points == {"eval/datasets/a/loss": pytest.approx(9 / 16), "eval/datasets/b/loss": 2.5}
    assert Scores.from_json({"loss": 1.0, "datasets": "damaged"}).dataset_losses() == {}

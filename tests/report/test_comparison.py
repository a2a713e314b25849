"""The paired difference: the same numbers as the evaluation room's, from the files alone."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluation.metrics import language, measure
from tunesmith.evaluation.results import ExampleScores
from tunesmith.report import comparison
from tunesmith.report.record import read_record

PAIRS = st.lists(
    st.tuples(st.integers(1, 300), st.floats(0, 12), st.floats(0, 12), st.floats(0, 1), st.floats(0, 1)),
    min_size=1,
    max_size=60,
)


@settings(deadline=None)
@given(PAIRS)
def test_the_difference_equals_that_of_the_evaluation(pairs):
    tokens = np.array([t for t, *_ in pairs], dtype=np.int64)
    before, after = (np.array([p[place] for p in pairs]) * tokens for place in (1, 2))
    right_before, right_after = (
        np.floor(np.array([p[place] for p in pairs]) * tokens).astype(np.int64) for place in (3, 4)
    )
    rows = np.arange(len(pairs))
    wanted = language.compare(
        ExampleScores(rows, before, tokens, right_before), ExampleScores(rows, after, tokens, right_after)
    )
    loss = comparison.difference((after - before).tolist(), tokens.tolist())
    accuracy = comparison.difference((right_after - right_before).tolist(), tokens.tolist())
    for found, expected in ((loss, wanted.loss), (accuracy, wanted.token_accuracy)):
        assert found.value == pytest.approx(expected.value, rel=1e-9, abs=1e-12)
        assert (found.low is None) == (expected.low is None)
        if found.low is not None:
            assert found.low == pytest.approx(expected.low, rel=1e-6, abs=1e-9)
            assert found.high == pytest.approx(expected.high, rel=1e-6, abs=1e-9)


def test_students_t_equals_that_of_the_evaluation():
    assert [comparison.student_95(n) for n in range(1, 200)] == [measure.student_95(n) for n in range(1, 200)]
    assert comparison.student_95(10) == pytest.approx(2.228139, abs=1e-4)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        tokens = rng.integers(5, 60, size=40)
        changes = (rng.normal(-0.3, 0.5, size=40) * tokens).tolist()
        found = comparison.difference(changes, tokens.tolist())
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= -0.3 <= found.high
    assert 0.90 <= covered / 400 <= 0.985


def test_a_run_is_compared_from_its_files(finished):
    record = read_record(finished.run)
    found = comparison.compare(record)
    assert found is not None
    before, after = record.evaluation("before"), record.evaluation("after")
    assert before is not None
    assert after is not None
    assert (found.step_before, found.step_after) == (0, finished.plan.batch.total_steps)
    assert found.loss.value == pytest.approx(after.scores.loss - before.scores.loss)
    assert found.token_accuracy.value == pytest.approx(after.scores.token_accuracy - before.scores.token_accuracy)
    assert found.loss.is_clear
    assert found.num_better > 40


def test_rows_without_a_supervised_token_are_left_out(finished):
    for step in (0, finished.plan.batch.total_steps):
        with open(finished.run.evaluation(step), "a", encoding="utf-8") as file:
            file.write(json.dumps({"id": 99999, "loss": None, "num_tokens": 0, "num_correct": 0}) + "\n")
    found = comparison.compare(read_record(finished.run))
    assert found is not None
    assert all(example.row != 99999 for example in found.examples)


def test_evaluations_of_other_rows_are_not_compared(finished):
    path = finished.run.evaluation(0)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert comparison.compare(read_record(finished.run)) is None


@pytest.mark.parametrize("content", ["", "not json\n", '{"id": 1}\n[]\n'])
def test_missing_and_damaged_scores_are_no_comparison(finished, content):
    finished.run.evaluation(0).write_text(content)
    assert comparison.compare(read_record(finished.run)) is None
    finished.run.evaluation(0).unlink()
    assert comparison.compare(read_record(finished.run)) is None


def test_a_loss_that_is_not_finite_has_no_interval():
    found = comparison.difference([math.nan, 1.0], [3, 4])
    assert math.isnan(found.value)
    assert found.interval is None
    assert not found.is_clear
    assert comparison.difference([2.0], [4]) == comparison.Difference(0.5, None, None)

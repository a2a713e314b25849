"""The paired difference computed from score files equals that of the evaluation package."""

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
def test_difference_equals_that_of_the_evaluation_package(pairs):
    tokens = np.array([t for t, *_ in pairs], dtype=np.int64)
    before, after = (np.array([p[column] for p in pairs]) * tokens for column in (1, 2))
    correct_before, correct_after = (
        np.floor(np.array([p[column] for p in pairs]) * tokens).astype(np.int64) for column in (3, 4)
    )
    rows = np.arange(len(pairs))
    reference = language.compare(
        ExampleScores(rows, before, tokens, correct_before), ExampleScores(rows, after, tokens, correct_after)
    )
    loss = comparison.difference((after - before).tolist(), tokens.tolist())
    accuracy = comparison.difference((correct_after - correct_before).tolist(), tokens.tolist())
    for actual, expected in ((loss, reference.loss), (accuracy, reference.token_accuracy)):
        assert actual.value == pytest.approx(expected.value, rel=1e-9, abs=1e-12)
        assert (actual.low is None) == (expected.low is None)
        if actual.low is not None:
            assert actual.low == pytest.approx(expected.low, rel=1e-6, abs=1e-9)
            assert actual.high == pytest.approx(expected.high, rel=1e-6, abs=1e-9)


def test_students_t_equals_that_of_the_evaluation_package():
    assert [comparison.student_95(n) for n in range(1, 200)] == [measure.student_95(n) for n in range(1, 200)]
    assert comparison.student_95(10) == pytest.approx(2.228139, abs=1e-4)


def test_interval_has_its_nominal_coverage():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        tokens = rng.integers(5, 60, size=40)
        changes = (rng.normal(-0.3, 0.5, size=40) * tokens).tolist()
        difference = comparison.difference(changes, tokens.tolist())
        assert difference.low is not None
        assert difference.high is not None
        covered += difference.low <= -0.3 <= difference.high
    assert 0.90 <= covered / 400 <= 0.985


def test_run_is_compared_from_its_files(finished):
    record = read_record(finished.run)
    result = comparison.compare(record)
    assert result is not None
    before, after = record.evaluation("before"), record.evaluation("after")
    assert before is not None
    assert after is not None
    assert (result.step_before, result.step_after) == (0, finished.plan.batch.total_steps)
    assert result.loss.value == pytest.approx(after.scores.loss - before.scores.loss)
    assert result.token_accuracy.value == pytest.approx(after.scores.token_accuracy - before.scores.token_accuracy)
    assert result.loss.is_clear
    assert result.num_better > 40


def test_rows_without_supervised_tokens_are_ignored(finished):
    for step in (0, finished.plan.batch.total_steps):
        with open(finished.run.evaluation(step), "a", encoding="utf-8") as file:
            file.write(json.dumps({"id": 99999, "loss": None, "num_tokens": 0, "num_correct": 0}) + "\n")
    result = comparison.compare(read_record(finished.run))
    assert result is not None
    assert all(example.row != 99999 for example in result.examples)


def test_evaluations_of_different_rows_are_not_compared(finished):
    path = finished.run.evaluation(0)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert comparison.compare(read_record(finished.run)) is None


@pytest.mark.parametrize("content", ["", "not json\n", '{"id": 1}\n[]\n'])
def test_missing_or_damaged_scores_give_no_comparison(finished, content):
    finished.run.evaluation(0).write_text(content)
    assert comparison.compare(read_record(finished.run)) is None
    finished.run.evaluation(0).unlink()
    assert comparison.compare(read_record(finished.run)) is None


def test_non_finite_loss_has_no_interval():
    difference = comparison.difference([math.nan, 1.0], [3, 4])
    assert math.isnan(difference.value)
    assert difference.interval is None
    assert not difference.is_clear
    assert comparison.difference([2.0], [4]) == comparison.Difference(0.5, None, None)

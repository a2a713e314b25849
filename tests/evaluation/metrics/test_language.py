import math

import numpy as np
import pytest

from tunesmith.errors import RunFault
from tunesmith.evaluation.metrics.language import compare, loss_of
from tunesmith.evaluation.metrics.measure import student_95
from tunesmith.evaluation.results import ExampleScores


def scores(loss_sum, num_tokens, num_correct=None, row=None) -> ExampleScores:
    count = len(loss_sum)
    return ExampleScores(
        np.arange(count) if row is None else np.array(row),
        np.array(loss_sum, dtype=np.float64),
        np.array(num_tokens, dtype=np.int64),
        np.array(num_correct if num_correct is not None else [0] * count, dtype=np.int64),
    )


def draw(generator: np.random.Generator, count: int) -> ExampleScores:
    """Draw examples of very unequal length; the tokens of an example share its difficulty."""
    tokens = generator.integers(2, 200, count)
    difficulty = np.exp(generator.normal(0.5, 0.4, count))
    return scores(difficulty * tokens, tokens, generator.binomial(tokens, 0.4))


def test_metrics_are_sums_over_tokens_not_means_of_means():
    metrics = loss_of(scores([2.0, 30.0], [1, 29], [1, 2]))
    assert metrics.loss == pytest.approx(32 / 30)
    assert metrics.perplexity == pytest.approx(math.exp(32 / 30))
    assert metrics.token_accuracy == pytest.approx(3 / 30)
    assert (metrics.num_examples, metrics.num_tokens) == (2, 30)


def test_standard_error_equals_the_hand_computed_value():
    # R = 10/5 = 2, residuals 3-2*1 = 1 and 7-2*4 = -1; Var = 2/1 * (1+1) / 25
    metrics = loss_of(scores([3.0, 7.0], [1, 4]))
    assert metrics.loss_error == pytest.approx(math.sqrt(4 / 25))
    assert metrics.perplexity_error == pytest.approx(math.exp(2.0) * math.sqrt(4 / 25))


def test_standard_error_equals_the_spread_over_new_samples():
    generator = np.random.default_rng(0)
    drawn = [loss_of(draw(generator, 60)) for _ in range(1500)]
    spread = np.std([metrics.loss for metrics in drawn])
    assert np.mean([metrics.loss_error for metrics in drawn]) == pytest.approx(spread, rel=0.08)
    spread = np.std([metrics.token_accuracy for metrics in drawn])
    assert np.mean([metrics.token_accuracy_error for metrics in drawn]) == pytest.approx(spread, rel=0.08)


def test_results_do_not_depend_on_the_order_of_rows():
    drawn = draw(np.random.default_rng(1), 500)
    shuffled = np.random.default_rng(2).permutation(500)
    parts = (drawn.row, drawn.loss_sum, drawn.num_tokens, drawn.num_correct)
    assert loss_of(ExampleScores(*(part[shuffled] for part in parts))) == loss_of(drawn)


def test_rows_without_targets_are_ignored():
    with_empty = loss_of(scores([3.0, 0.0, 7.0], [1, 0, 4]))
    assert with_empty == loss_of(scores([3.0, 7.0], [1, 4]))
    with pytest.raises(RunFault, match="no token"):
        loss_of(scores([0.0, 0.0], [0, 0]))


def test_single_example_has_no_error_and_no_interval():
    one = scores([3.0], [2])
    assert loss_of(one).loss_error is None
    difference = compare(one, scores([1.0], [2])).loss
    assert (difference.value, difference.low, difference.high) == (-1.0, None, None)
    assert not difference.is_clear


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_loss_is_propagated(bad):
    metrics = loss_of(scores([1.0, bad, 2.0], [1, 1, 1]))
    assert not math.isfinite(metrics.loss)
    assert not math.isfinite(metrics.perplexity)


def test_paired_interval_is_narrower_than_unpaired_errors():
    generator = np.random.default_rng(3)
    before = draw(generator, 80)
    gain = 0.02 + generator.normal(0.0, 0.01, 80)
    after = scores(before.loss_sum - gain * before.num_tokens, before.num_tokens, before.num_correct)
    difference = compare(before, after).loss
    assert difference.value == pytest.approx(loss_of(after).loss - loss_of(before).loss)
    assert difference.is_clear
    assert difference.high < 0.0
    unpaired = loss_of(before).loss_error
    assert unpaired is not None
    assert difference.high - difference.low < unpaired


def test_interval_has_its_nominal_coverage_and_agrees_with_the_bootstrap():
    generator = np.random.default_rng(4)
    truth, covered, repetitions, count = -0.1, 0, 1000, 25
    for _ in range(repetitions):
        before = draw(generator, count)
        change = generator.normal(truth, 0.3, count)
        after = scores(before.loss_sum + change * before.num_tokens, before.num_tokens)
        interval = compare(before, after).loss
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / repetitions <= 0.975

    picks = generator.integers(0, count, (4000, count))
    resampled = (after.loss_sum - before.loss_sum)[picks].sum(1) / before.num_tokens[picks].sum(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.2)


def test_different_rows_are_not_compared():
    with pytest.raises(RunFault, match="different rows or tokens"):
        compare(scores([1.0, 2.0], [1, 2]), scores([1.0, 2.0], [1, 3]))
    with pytest.raises(RunFault, match="different rows or tokens"):
        compare(scores([1.0, 2.0], [1, 2]), scores([1.0, 2.0], [1, 2], row=[0, 7]))


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [
        (1, 12.706205),
        (2, 4.302653),
        (3, 3.182446),
        (4, 2.776445),
        (10, 2.228139),
        (30, 2.042272),
        (10**6, 1.959966),
    ],
)
def test_students_t_equals_published_tables(degrees, quantile):
    assert student_95(degrees) == pytest.approx(quantile, abs=1e-3)

"""Probability metrics equal scikit-learn's, with ties and absent classes; influences equal explicit leave-one-out."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from tunesmith.evaluation.metrics.probability import areas, auprc, auroc, calibration_error, probabilistic


def draw(classes: int, count: int, seed: int, *, coarse: bool = False) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, count)
    logits = generator.normal(0, 1, (count, classes))
    logits[np.arange(count), truth] += 1.0
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if coarse:  # many ties
        probabilities = np.round(probabilities, 1) + 0.05
        probabilities /= probabilities.sum(1, keepdims=True)
        probabilities = np.round(probabilities, 3)
        probabilities[:, -1] = 1 - probabilities[:, :-1].sum(1)
    return truth, probabilities


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_two_classes_equal_scikit_learn(seed, coarse):
    truth, probabilities = draw(2, 120, seed, coarse=coarse)
    result = {name: measured.value for name, measured in probabilistic(truth, probabilities).items()}
    assert result["log_loss"] == pytest.approx(sk.log_loss(truth, probabilities, labels=[0, 1]), abs=1e-9)
    assert result["brier"] == pytest.approx(sk.brier_score_loss(truth, probabilities[:, 1]), abs=1e-9)
    assert result["auroc"] == pytest.approx(sk.roc_auc_score(truth, probabilities[:, 1]), abs=1e-9)
    assert result["auprc"] == pytest.approx(sk.average_precision_score(truth, probabilities[:, 1]), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_several_classes_equal_scikit_learn(seed):
    truth, probabilities = draw(5, 150, seed)
    result = {name: measured.value for name, measured in probabilistic(truth, probabilities).items()}
    onehot = np.eye(5)[truth]
    assert result["log_loss"] == pytest.approx(sk.log_loss(truth, probabilities, labels=range(5)), abs=1e-9)
    assert result["brier"] == pytest.approx(sk.brier_score_loss(truth, probabilities, labels=range(5)), abs=1e-9)
    assert result["auroc"] == pytest.approx(sk.roc_auc_score(truth, probabilities, multi_class="ovr"), abs=1e-9)
    assert result["auprc"] == pytest.approx(sk.average_precision_score(onehot, probabilities), abs=1e-9)
    for k in range(5):
        assert result[f"auroc/{k}"] == pytest.approx(sk.roc_auc_score(onehot[:, k], probabilities[:, k]), abs=1e-9)


def test_degenerate_cases_are_defined():
    truth, probabilities = np.array([0, 1, 2]), np.eye(3)
    certain = probabilistic(truth, probabilities)
    assert certain["log_loss"].value == pytest.approx(sk.log_loss(truth, probabilities), abs=1e-9)
    assert (certain["brier"].value, certain["calibration_error"].value, certain["auroc"].value) == (0.0, 0.0, 1.0)
    wrong = probabilistic(np.array([1, 2, 0]), probabilities)
    assert wrong["log_loss"].value == pytest.approx(sk.log_loss([1, 2, 0], probabilities), abs=1e-9)
    assert wrong["calibration_error"].value == 1.0
    single = probabilistic(np.zeros(6, int), draw(2, 6, 0)[1])
    assert np.isnan(single["auroc"].value)
    assert np.isnan(single["auprc"].value)
    assert single["auroc"].as_json() == {"value": None, "error": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sk.average_precision_score([1] * 6, np.arange(6))
    assert auprc(np.ones(6, bool), np.arange(6)).value == pytest.approx(expected)
    one_missing = areas(np.eye(4)[np.array([0, 1, 2, 0, 1, 2])] > 0, draw(4, 6, 1)[1])
    assert np.isnan(one_missing["auroc/3"].value)
    assert np.isfinite(one_missing["auroc"].value)


@pytest.mark.parametrize("area", [auroc, auprc])
@pytest.mark.parametrize("coarse", [False, True])
def test_influence_equals_explicit_leave_one_out(area, coarse):
    truth, probabilities = draw(2, 60, 5, coarse=coarse)
    truth, score = truth.astype(bool), probabilities[:, 1]
    result = area(truth, score)
    left_out = np.array([area(np.delete(truth, i), np.delete(score, i)).value for i in range(len(truth))])
    assert result.influence == pytest.approx((len(truth) - 1) * (result.value - left_out), abs=1e-9)


@pytest.mark.parametrize("name", ["log_loss", "brier", "auroc", "auprc"])
def test_standard_error_equals_the_spread_over_new_samples(name):
    drawn = [probabilistic(*draw(2, 120, seed))[name] for seed in range(400)]
    spread = np.std([measured.value for measured in drawn])
    assert np.mean([measured.error for measured in drawn]) == pytest.approx(spread, rel=0.12)


def test_calibration_error_equals_hand_computed_values():
    confidence, correct = np.array([0.95, 0.95, 0.6, 0.6]), np.array([True, False, True, True])
    # bins of a tenth: |1/2 - 0.95| and |1 - 0.6|, each with half of the examples
    assert calibration_error(confidence, correct, 10).value == pytest.approx(0.5 * 0.45 + 0.5 * 0.4)
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.2, 1.0, 50)
    correct = generator.random(50) < confidence
    result = calibration_error(confidence, correct)
    left_out = [calibration_error(np.delete(confidence, i), np.delete(correct, i)).value for i in range(50)]
    assert result.influence == pytest.approx(49 * (result.value - np.array(left_out)), abs=1e-9)
    large = generator.uniform(0.2, 1.0, 100_000)
    assert calibration_error(large, generator.random(100_000) < large).value < 0.01

"""Classification metrics equal scikit-learn's on random and degenerate cases; errors are compared with new samples."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from tunesmith.evaluation.metrics.classification import confusion_matrix, multi_label, single_label
from tunesmith.evaluation.metrics.measure import difference

CASES = {
    "random": (4, 200, None),
    "two classes": (2, 50, None),
    "many classes, few examples": (30, 40, None),
    "one decision for all": (3, 30, "constant"),
    "one class in the truth": (3, 30, "single"),
    "all right": (5, 25, "right"),
    "all wrong": (3, 24, "wrong"),
    "one example": (3, 1, None),
    "absent classes": (9, 60, "absent"),
}


def draw(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
    classes, count, shape = CASES[kind]
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, count)
    decided = np.where(generator.random(count) < 0.6, truth, generator.integers(0, classes, count))
    if shape == "constant":
        decided[:] = 1
    if shape == "single":
        truth[:] = 2
    if shape == "right":
        decided = truth.copy()
    if shape == "wrong":
        decided = (truth + 1) % classes
    if shape == "absent":
        truth, decided = truth % 3, decided % 4
    return truth, decided, classes


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_single_label_equals_scikit_learn(kind, seed):
    truth, decided, classes = draw(kind, seed)
    result = {name: measured.value for name, measured in single_label(truth, decided, classes).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": sk.accuracy_score(truth, decided),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, decided),
            "mcc": sk.matthews_corrcoef(truth, decided),
        }
        for average in ("macro", "micro", "weighted"):
            p, r, f, _ = sk.precision_recall_fscore_support(truth, decided, average=average, zero_division=0)
            expected |= {f"precision_{average}": p, f"recall_{average}": r, f"f1_{average}": f}
        present = sorted(set(truth) | set(decided))
        by_class = sk.precision_recall_fscore_support(truth, decided, labels=present, zero_division=0)
    for index, name in enumerate(("precision", "recall", "f1")):
        expected |= {f"{name}/{k}": value for k, value in zip(present, by_class[index], strict=True)}
    assert set(expected) <= set(result)
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-9), name
    for name in set(result) - set(expected):  # absent classes
        assert np.isnan(result[name]), name
    matrix = confusion_matrix(truth, decided, classes)
    assert np.array_equal(matrix, sk.confusion_matrix(truth, decided, labels=range(classes)))


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_multi_label_equals_scikit_learn(density):
    generator = np.random.default_rng(1)
    truth = generator.random((80, 5)) < density
    decided = truth ^ (generator.random((80, 5)) < 0.2)
    decided[:, 4] = truth[:, 4] = False  # an absent class
    result = {name: measured.value for name, measured in multi_label(truth, decided).items()}
    assert result["subset_accuracy"] == pytest.approx(sk.accuracy_score(truth, decided), abs=1e-12)
    assert result["label_accuracy"] == pytest.approx(1 - sk.hamming_loss(truth, decided), abs=1e-12)
    present = [k for k in range(5) if truth[:, k].any() or decided[:, k].any()]
    for average in ("macro", "micro", "weighted"):
        scores = sk.precision_recall_fscore_support(
            truth[:, present], decided[:, present], average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), scores[:3], strict=True):
            assert result[f"{name}_{average}"] == pytest.approx(value, abs=1e-9), (name, average)
    assert np.isnan(result["f1/4"])


def test_influence_equals_explicit_leave_one_out():
    truth, decided, classes = draw("random", 7)
    truth, decided = truth[:40], decided[:40]
    result = single_label(truth, decided, classes)
    for name in ("f1_macro", "mcc", "balanced_accuracy", "precision_weighted", "recall/2"):
        left_out = [
            single_label(np.delete(truth, i), np.delete(decided, i), classes)[name].value for i in range(len(truth))
        ]
        expected = (len(truth) - 1) * (result[name].value - np.array(left_out))
        assert result[name].influence == pytest.approx(expected, abs=1e-9), name


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "mcc"])
def test_standard_error_equals_the_spread_over_new_samples(name):
    drawn = [single_label(*draw("random", seed))[name] for seed in range(300)]
    errors = [measured.error for measured in drawn]
    assert np.mean(errors) == pytest.approx(np.std([measured.value for measured in drawn]), rel=0.12)


def test_results_do_not_depend_on_the_order_of_examples():
    truth, decided, classes = draw("random", 3)
    order = np.random.default_rng(0).permutation(len(truth))
    first, second = single_label(truth, decided, classes), single_label(truth[order], decided[order], classes)
    for name, measured in first.items():
        assert (measured.value, measured.error) == (second[name].value, second[name].error), name


def test_paired_difference_cancels_shared_errors():
    truth, decided, classes = draw("random", 5)
    better = decided.copy()
    wrong = np.flatnonzero(decided != truth)[:12]
    better[wrong] = truth[wrong]
    before, after = (single_label(truth, d, classes)["f1_macro"] for d in (decided, better))
    result = difference(before, after)
    assert result.value == pytest.approx(after.value - before.value)
    assert result.is_clear
    assert result.low > 0
    assert result.high - result.low < 2 * 1.96 * (before.error + after.error)
    same = difference(before, before)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_labels_out_of_range_are_rejected():
    with pytest.raises(ValueError, match="range"):
        single_label(np.array([0, 3]), np.array([0, 1]), 3)
    with pytest.raises(ValueError):
        single_label(np.array([], int), np.array([], int), 3)

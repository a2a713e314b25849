"""Decisions against the truth: accuracy, precision, recall, F1, MCC and the confusion matrix, from counts.

n examples, K classes numbered from 0. Everything is a function of counts by class (hits tp, false alarms fp, misses
fn), so leaving one example out changes at most two classes: the jackknife runs over distinct (truth, decision) pairs.

What scikit-learn leaves to a warning is defined here: precision without a decision for the class, recall without an
example of it and F1 without either are 0; MCC is 0 where one side holds a single class. Averages run over the classes
that occur in the truth or among the decisions, balanced accuracy over those of the truth. A class that occurs in
neither has NaN for its own numbers.
"""

from typing import NamedTuple

import numpy as np

from tunesmith.evaluation.metrics.measure import Measured, jackknifed, mean

Numbers = dict[str, np.ndarray]


class Counts(NamedTuple):
    """Float64 [..., K] each, whole numbers: one set of counts, or one for each way to leave an example out."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray


def confusion_matrix(truth: np.ndarray, decided: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [K, K]: examples of class i (row) that were decided to be j (column). truth, decided: int [n]."""
    cells = np.asarray(truth, np.int64) * num_classes + np.asarray(decided, np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def single_label(truth: np.ndarray, decided: np.ndarray, num_classes: int) -> dict[str, Measured]:
    """Metrics of one class an example. truth, decided: int [n], each in range(num_classes).

    Names: accuracy, balanced_accuracy, mcc, {precision,recall,f1}_{macro,micro,weighted}, and by class
    {precision,recall,f1}/k. Raises ValueError where a label is out of range or there are no examples.
    """
    truth, decided = np.asarray(truth, np.int64), np.asarray(decided, np.int64)
    _require(truth, decided, num_classes)
    cells, of_example = np.unique(truth * num_classes + decided, return_inverse=True)
    whole = _counts_of(confusion_matrix(truth, decided, num_classes))
    without = _left_out(whole, cells // num_classes, cells % num_classes)
    present = whole.tp + whole.fp + whole.fn > 0
    occurring = whole.tp + whole.fn > 0
    value, others = (
        precision_recall_f1(counts, present) | {"balanced_accuracy": _balanced(counts, occurring), "mcc": _mcc(counts)}
        for counts in (whole, without)
    )
    found = {"accuracy": mean(truth == decided)}
    return found | {name: jackknifed(float(value[name]), others[name][of_example]) for name in value}


def multi_label(truth: np.ndarray, decided: np.ndarray) -> dict[str, Measured]:
    """Metrics of any number of classes an example. truth, decided: bool [n, K].

    Names: subset_accuracy (all classes right), label_accuracy, and as in single_label precision, recall and F1.
    """
    truth, decided = np.asarray(truth, bool), np.asarray(decided, bool)
    if truth.shape != decided.shape or truth.ndim != 2 or not len(truth):
        raise ValueError(f"truth {truth.shape} and decisions {decided.shape} are not both [n, K]")
    each = Counts(*(np.asarray(p, np.float64) for p in (truth & decided, ~truth & decided, truth & ~decided)))
    whole = Counts(*(part.sum(0) for part in each))
    without = Counts(*(total - part for total, part in zip(whole, each, strict=True)))
    present = whole.tp + whole.fp + whole.fn > 0
    value, others = (precision_recall_f1(counts, present) for counts in (whole, without))
    right = truth == decided
    found = {"subset_accuracy": mean(right.all(1)), "label_accuracy": mean(right.mean(1))}
    return found | {name: jackknifed(float(value[name]), others[name]) for name in value}


def precision_recall_f1(counts: Counts, present: np.ndarray) -> Numbers:
    """Averages over the classes `present` (bool [K]) and the numbers of each class, arrays of counts' leading shape."""
    tp, fp, fn = counts
    support = tp + fn
    by_class = {
        "precision": _quotient(tp, tp + fp),
        "recall": _quotient(tp, support),
        "f1": _quotient(2 * tp, 2 * tp + fp + fn),
    }
    sums = tp.sum(-1), fp.sum(-1), fn.sum(-1)
    micro = {
        "precision": _quotient(sums[0], sums[0] + sums[1]),
        "recall": _quotient(sums[0], sums[0] + sums[2]),
        "f1": _quotient(2 * sums[0], 2 * sums[0] + sums[1] + sums[2]),
    }
    found: Numbers = {}
    for name, values in by_class.items():
        found[f"{name}_macro"] = values[..., present].mean(-1) if present.any() else np.zeros(values.shape[:-1])
        found[f"{name}_micro"] = micro[name]
        found[f"{name}_weighted"] = _quotient((values * support).sum(-1), support.sum(-1))
    for name, values in by_class.items():
        for k in range(values.shape[-1]):
            found[f"{name}/{k}"] = values[..., k] if present[k] else np.full(values.shape[:-1], np.nan)
    return found


def _require(truth: np.ndarray, decided: np.ndarray, num_classes: int) -> None:
    if truth.ndim != 1 or truth.shape != decided.shape or not len(truth):
        raise ValueError(f"truth {truth.shape} and decisions {decided.shape} are not both [n]")
    lowest, highest = min(truth.min(), decided.min()), max(truth.max(), decided.max())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(f"labels {lowest} to {highest} are not all in range({num_classes})")


def _counts_of(matrix: np.ndarray) -> Counts:
    hits = np.diag(matrix).astype(np.float64)
    return Counts(hits, matrix.sum(0) - hits, matrix.sum(1) - hits)


def _left_out(whole: Counts, truth: np.ndarray, decided: np.ndarray) -> Counts:
    """Counts [m, K] without one example of each of the m pairs."""
    without = Counts(*(np.repeat(part[None], len(truth), 0) for part in whole))
    right = truth == decided
    rows = np.arange(len(truth))
    without.tp[rows[right], truth[right]] -= 1
    without.fn[rows[~right], truth[~right]] -= 1
    without.fp[rows[~right], decided[~right]] -= 1
    return without


def _balanced(counts: Counts, occurring: np.ndarray) -> np.ndarray:
    """The mean recall of the classes that the truth holds."""
    return _quotient(counts.tp, counts.tp + counts.fn)[..., occurring].mean(-1)


def _mcc(counts: Counts) -> np.ndarray:
    """Matthews' correlation for K classes (Gorodkin, Computational Biology and Chemistry 28, 2004)."""
    tp, fp, fn = counts
    truth, decided = tp + fn, tp + fp
    total = truth.sum(-1)
    covariance = tp.sum(-1) * total - (truth * decided).sum(-1)
    spread = (total**2 - (truth**2).sum(-1)) * (total**2 - (decided**2).sum(-1))
    return _quotient(covariance, np.sqrt(spread))


def _quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below; 0 where below is 0."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below != 0)

"""Classification metrics from counts: accuracy, precision, recall, F1, MCC and the confusion matrix.

n examples, K classes numbered from 0. All metrics are functions of per-class counts (true positives tp, false positives
fp, false negatives fn), so leaving one example out changes at most two classes: the jackknife is computed over distinct
(truth, decision) pairs.

Cases for which scikit-learn issues a warning are defined: precision without a decision for the class, recall without an
example of it and F1 without either are 0; MCC is 0 if the truth or the decisions have a single class. Averages are over
the classes that occur in the truth or the decisions, balanced accuracy over those of the truth. The per-class metrics
of a class that occurs in neither are NaN.
"""

from typing import NamedTuple

import numpy as np

from tunesmith.evaluation.metrics.measure import Measured, jackknifed, mean

Numbers = dict[str, np.ndarray]


class Counts(NamedTuple):
    """Counts, float64 [..., K] each: one set, or one per left-out example."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray


def confusion_matrix(truth: np.ndarray, decided: np.ndarray, num_classes: int) -> np.ndarray:
    """Return int64 [K, K]: number of examples of class i (row) predicted as j (column). truth, decided: int [n]."""
    cells = np.asarray(truth, np.int64) * num_classes + np.asarray(decided, np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def single_label(truth: np.ndarray, decided: np.ndarray, num_classes: int) -> dict[str, Measured]:
    """Compute single-label metrics. truth, decided: int [n], each in range(num_classes).

    Names: accuracy, balanced_accuracy, mcc, {precision,recall,f1}_{macro,micro,weighted}, and by class
    {precision,recall,f1}/k. Raises ValueError if a label is out of range or there are no examples.
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
    accuracy = {"accuracy": mean(truth == decided)}
    return accuracy | {name: jackknifed(float(value[name]), others[name][of_example]) for name in value}


def multi_label(truth: np.ndarray, decided: np.ndarray) -> dict[str, Measured]:
    """Compute multi-label metrics. truth, decided: bool [n, K].

    Names: subset_accuracy (all classes correct), label_accuracy, and precision, recall and F1 as in single_label.
    """
    truth, decided = np.asarray(truth, bool), np.asarray(decided, bool)
    if truth.shape != decided.shape or truth.ndim != 2 or not len(truth):
        raise ValueError(f"truth {truth.shape} and decisions {decided.shape} are not both [n, K]")
    each = Counts(*(np.asarray(p, np.float64) for p in (truth & decided, ~truth & decided, truth & ~decided)))
    whole = Counts(*(part.sum(0) for part in each))
    without = Counts(*(total - part for total, part in zip(whole, each, strict=True)))
    present = whole.tp + whole.fp + whole.fn > 0
    value, others = (precision_recall_f1(counts, present) for counts in (whole, without))
    correct = truth == decided
    accuracies = {"subset_accuracy": mean(correct.all(1)), "label_accuracy": mean(correct.mean(1))}
    return accuracies | {name: jackknifed(float(value[name]), others[name]) for name in value}


def precision_recall_f1(counts: Counts, present: np.ndarray) -> Numbers:
    """Return averages over the classes `present` (bool [K]) and per-class metrics, with the counts' leading shape."""
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
    metrics: Numbers = {}
    for name, values in by_class.items():
        metrics[f"{name}_macro"] = values[..., present].mean(-1) if present.any() else np.zeros(values.shape[:-1])
        metrics[f"{name}_micro"] = micro[name]
        metrics[f"{name}_weighted"] = _quotient((values * support).sum(-1), support.sum(-1))
    for name, values in by_class.items():
        for k in range(values.shape[-1]):
            metrics[f"{name}/{k}"] = values[..., k] if present[k] else np.full(values.shape[:-1], np.nan)
    return metrics


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
    """Return counts [m, K], each without one example of one of the m pairs."""
    without = Counts(*(np.repeat(part[None], len(truth), 0) for part in whole))
    correct = truth == decided
    rows = np.arange(len(truth))
    without.tp[rows[correct], truth[correct]] -= 1
    without.fn[rows[~correct], truth[~correct]] -= 1
    without.fp[rows[~correct], decided[~correct]] -= 1
    return without


def _balanced(counts: Counts, occurring: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that occur in the truth."""
    return _quotient(counts.tp, counts.tp + counts.fn)[..., occurring].mean(-1)


def _mcc(counts: Counts) -> np.ndarray:
    """Matthews correlation coefficient for K classes (Gorodkin, Computational Biology and Chemistry 28, 2004)."""
    tp, fp, fn = counts
    truth, decided = tp + fn, tp + fp
    total = truth.sum(-1)
    covariance = tp.sum(-1) * total - (truth * decided).sum(-1)
    spread = (total**2 - (truth**2).sum(-1)) * (total**2 - (decided**2).sum(-1))
    return _quotient(covariance, np.sqrt(spread))


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return numerator / denominator; 0 where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    zeros = np.zeros(np.broadcast(numerator, denominator).shape)
    return np.divide(numerator, denominator, out=zeros, where=denominator != 0)

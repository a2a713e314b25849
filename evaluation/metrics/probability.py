"""Metrics of predicted probabilities: log loss, Brier score, calibration error, AUROC and AUPRC.

n examples, K classes. The areas depend only on the order of the scores; equal scores share a threshold. They follow the
definitions of scikit-learn; undefined values (only one class occurs) are NaN, without a warning.
"""

import numpy as np

from tunesmith.evaluation.metrics.measure import Measured, exact_sum, jackknifed, mean

CALIBRATION_BINS = 15
_LEAST = float(np.finfo(np.float64).eps)


def probabilistic(truth: np.ndarray, probability_nK: np.ndarray) -> dict[str, Measured]:
    """Compute single-label metrics. truth: int [n] in range(K). probability_nK: float [n, K], rows sum to 1.

    Names: log_loss (nats), brier, calibration_error, auroc and auprc. The areas are those of class 1 for two classes;
    for more, the one-vs-rest macro average over the classes for which they are defined, and auroc/k, auprc/k by class.
    """
    truth, probability_nK = np.asarray(truth, np.int64), np.asarray(probability_nK, np.float64)
    if probability_nK.ndim != 2 or len(truth) != len(probability_nK) or not len(truth):
        raise ValueError(f"truth {truth.shape} and probabilities {probability_nK.shape} are not [n] and [n, K]")
    num_classes = probability_nK.shape[1]
    of_truth = probability_nK[np.arange(len(truth)), truth]
    is_truth_nK = truth[:, None] == np.arange(num_classes)
    squares_nK = (probability_nK - is_truth_nK) ** 2
    metrics = {
        "log_loss": mean(-np.log(np.clip(of_truth, _LEAST, 1.0 - _LEAST))),
        "brier": mean(squares_nK[:, 1] if num_classes == 2 else squares_nK.sum(1)),
        "calibration_error": calibration_error(probability_nK.max(1), probability_nK.argmax(1) == truth),
    }
    if num_classes == 2:
        return metrics | {
            "auroc": auroc(is_truth_nK[:, 1], probability_nK[:, 1]),
            "auprc": auprc(is_truth_nK[:, 1], probability_nK[:, 1]),
        }
    return metrics | areas(is_truth_nK, probability_nK)


def areas(truth_nK: np.ndarray, score_nK: np.ndarray) -> dict[str, Measured]:
    """Return AUROC and AUPRC of each class ("auroc/k") and the mean over the classes that define them ("auroc").

    truth_nK: bool, also multi-label; score_nK: float, higher for the class.
    """
    metrics: dict[str, Measured] = {}
    for name, area in (("auroc", auroc), ("auprc", auprc)):
        by_class = [area(truth_nK[:, k], score_nK[:, k]) for k in range(truth_nK.shape[1])]
        defined = [measured for measured in by_class if np.isfinite(measured.value)]
        zeros = np.zeros(len(truth_nK))
        metrics[name] = Measured(
            float(np.mean([m.value for m in defined])) if defined else np.nan,
            np.mean([m.influence for m in defined], axis=0) if defined else zeros,
        )
        metrics |= {f"{name}/{k}": measured for k, measured in enumerate(by_class)}
    return metrics


def calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int = CALIBRATION_BINS) -> Measured:
    """Return the expected calibration error (Naeini et al., AAAI 2015): mean gap of confidence and accuracy.

    confidence: float [n], of the decision. correct: bool [n]. Bins have equal width and include their upper edge.
    """
    confidence = np.asarray(confidence, np.float64)
    count, gaps = len(confidence), np.asarray(correct, np.float64) - confidence
    bins = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    sums = np.array([exact_sum(gaps[bins == b]) for b in range(num_bins)])
    total = exact_sum(np.abs(sums))
    if count == 1:
        return Measured(total, np.zeros(1))
    without = total - np.abs(sums)[bins] + np.abs(sums[bins] - gaps)
    return jackknifed(total / count, without / (count - 1))


def auroc(truth: np.ndarray, score: np.ndarray) -> Measured:
    """Return the probability that a positive scores above a negative, ties counted half.

    truth: bool [n], score: float [n].
    """
    truth = np.asarray(truth, bool)
    _, group = np.unique(np.asarray(score, np.float64), return_inverse=True)
    positive, negative = (np.bincount(group[mask], minlength=group.max() + 1) for mask in (truth, ~truth))
    num_positive, num_negative = int(positive.sum()), int(negative.sum())
    if not num_positive or not num_negative:
        return Measured(np.nan, np.zeros(len(truth)))
    below = np.cumsum(negative) - negative + negative / 2  # pairs won by a positive of each group; halves are exact
    above = num_positive - np.cumsum(positive) + positive / 2  # pairs lost by a negative of each group
    wins = float((positive * below).sum())
    removed = np.where(truth, below[group], above[group])
    pairs = np.where(truth, (num_positive - 1) * num_negative, num_positive * (num_negative - 1))
    value = wins / (num_positive * num_negative)
    without = np.divide(wins - removed, pairs, out=np.full(len(truth), value), where=pairs > 0)
    return jackknifed(value, without)


def auprc(truth: np.ndarray, score: np.ndarray) -> Measured:
    """Return the average precision: precision at each threshold, weighted by the increase in recall. truth: bool [n].

    NaN if there is no positive example.
    """
    truth = np.asarray(truth, bool)
    _, group = np.unique(-np.asarray(score, np.float64), return_inverse=True)  # group 0 has the highest score
    positives = np.bincount(group, weights=truth)
    hits, chosen = np.cumsum(positives), np.cumsum(np.bincount(group))
    num_positive = hits[-1]
    if not num_positive:
        return Measured(np.nan, np.zeros(len(truth)))
    value = exact_sum(positives * hits / chosen) / num_positive
    without = np.full(len(truth), value)
    before = np.cumsum(positives * hits / chosen) - positives * hits / chosen
    for is_positive in (0, 1):
        # Without an example of group g, thresholds above g do not change; from g on, one fewer example is selected.
        left = np.maximum(chosen - 1, 1)
        terms = positives * (hits - is_positive) / left
        after = terms[::-1].cumsum()[::-1] - terms
        here = (positives - is_positive) * (hits - is_positive) / left
        mask = truth == bool(is_positive)
        if num_positive > is_positive:
            without[mask] = ((before + here + after) / (num_positive - is_positive))[group[mask]]
    return jackknifed(value, without)

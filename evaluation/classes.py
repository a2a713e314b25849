"""Scoring a classifier: logits and loss of every row, and predictions by label name."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.data.index.loader import micro_batch
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.evaluation.metrics.classification import multi_label, single_label
from tunesmith.evaluation.metrics.measure import Measured
from tunesmith.evaluation.metrics.probability import areas, probabilistic
from tunesmith.evaluation.results import ExampleScores
from tunesmith.evaluation.score import batches_of, budget_of, by_row, device_of
from tunesmith.modeling.loading.heads import Labels
from tunesmith.modeling.losses.classification import ClassificationLoss
from tunesmith.modeling.mode import evaluating
from tunesmith.rundir.atomic import write_text


@dataclass(frozen=True)
class Predictions:
    """Predictions for N rows.

    row: int64 [N], row ids in ascending order. targets: int64 [N, K], as encoded at the end of the documents.
    probabilities: float64 [N, C], of each label for single_label, else of the positive class.
    """

    row: np.ndarray
    targets: np.ndarray
    probabilities: np.ndarray

    def decided(self, kind: str) -> np.ndarray:
        """Return the decisions, int64 [N, K]: index of the most likely label, or 1 for each label above 0.5."""
        if kind == "single_label":
            return self.probabilities.argmax(1)[:, None]
        return (self.probabilities > 0.5).astype(np.int64)


def classify_index(loss: ClassificationLoss, index: TokenIndex) -> tuple[ExampleScores, Predictions]:
    """Return sums by row like `score_index` (num_tokens counts targets), and the predictions, over the index."""
    chosen = range(index.num_documents)
    rows: list[int] = []
    sums: list[float] = []
    hits: list[int] = []
    logits, targets = [], []
    device = device_of(loss)
    with evaluating(loss), torch.no_grad():
        for batch in batches_of(index, chosen, budget_of(loss)):
            samples = [index.document(document) for document in batch]
            flat = micro_batch(samples)
            tokens_T, labels_T, positions_T = (
                torch.from_numpy(array).to(device) for array in (flat.tokens, flat.labels, flat.positions)
            )
            outputs = loss.classify(tokens_T, labels_T, positions_T, flat.lengths)
            rows += [sample.rows[0] for sample in samples]
            sums += outputs.loss.double().sum(1).tolist()
            hits += loss.hits(outputs).sum(1).tolist()
            logits.append(outputs.logits.double().cpu())
            targets.append(outputs.targets.cpu())
    scores = by_row(rows, sums, [loss.labels.num_targets] * len(rows), hits)
    order = np.argsort(np.array(rows), kind="stable")
    logits_NC = torch.cat(logits)[order]
    single = loss.labels.kind == "single_label"
    probabilities_NC = logits_NC.softmax(-1) if single else logits_NC.sigmoid()
    return scores, Predictions(scores.row, torch.cat(targets)[order].numpy(), probabilities_NC.numpy())


def measures_of(predictions: Predictions, labels: Labels) -> dict[str, Any]:
    """Return the event's `classification`: {"kind", "metrics": {name: value}, "errors": {name: error}, "majority"}.

    Metrics of the decisions and of the probabilities; per-label metrics are named name/label. majority: accuracy and
    macro-F1 of the majority-class baseline. errors are standard errors.
    A metric that is undefined on these rows is null.
    """
    measured = measured_of(predictions, labels)
    values = {name: _number(m.value) for name, m in measured.items()}
    errors = {name: _number(m.error) for name, m in measured.items() if "/" not in name}
    guess = np.broadcast_to(_majority_class(predictions.targets, labels), predictions.targets.shape)
    baseline = _decisions(predictions.targets, guess, labels)
    majority = {name: _number(baseline[name].value) for name in _MAJORITY_METRICS if name in baseline}
    return {"kind": labels.kind, "metrics": values, "errors": errors, "majority": majority}


def measured_of(predictions: Predictions, labels: Labels) -> dict[str, Measured]:
    """Return the metrics of `measures_of`, each with the influence of every row."""
    return {_named(name, labels): measured for name, measured in _measured(predictions, labels).items()}


_MAJORITY_METRICS = ("accuracy", "subset_accuracy", "f1_macro")


def _measured(predictions: Predictions, labels: Labels) -> dict[str, Measured]:
    decided = predictions.decided(labels.kind)
    measured = _decisions(predictions.targets, decided, labels)
    if labels.kind == "multi_label":
        return measured | areas(predictions.targets == 1, predictions.probabilities)
    probabilities = predictions.probabilities
    if labels.kind == "binary":
        probabilities = np.concatenate([1.0 - probabilities, probabilities], axis=1)
    return measured | probabilistic(predictions.targets[:, 0], probabilities)


def _decisions(targets: np.ndarray, decided: np.ndarray, labels: Labels) -> dict[str, Measured]:
    if labels.kind == "multi_label":
        return multi_label(targets == 1, decided == 1)
    return single_label(targets[:, 0], decided[:, 0], len(labels.names))


def _named(metric: str, labels: Labels) -> str:
    """Replace the class index at the end of a per-class metric by the label name."""
    name, _, number = metric.partition("/")
    return f"{name}/{labels.names[int(number)]}" if number else name


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def write_predictions(path: Path, scores: ExampleScores, predictions: Predictions, labels: Labels) -> None:
    """Like `write_scores`, with "label", "predicted" and "probabilities" by label name."""
    lines = []
    decided = predictions.decided(labels.kind)
    for number, row in enumerate(predictions.row.tolist()):
        loss = float(scores.loss_sum[number]) / int(scores.num_tokens[number])
        shown = zip(labels.shown, predictions.probabilities[number].tolist(), strict=True)
        lines.append(
            json.dumps(
                {
                    "id": row,
                    "loss": loss if math.isfinite(loss) else str(loss),
                    "num_tokens": int(scores.num_tokens[number]),
                    "num_correct": int(scores.num_correct[number]),
                    "label": named(predictions.targets[number], labels),
                    "predicted": named(decided[number], labels),
                    "probabilities": {name: round(value, 6) for name, value in shown},
                },
                ensure_ascii=False,
            )
        )
    write_text(path, "".join(f"{line}\n" for line in lines))


def named(targets_K: np.ndarray, labels: Labels) -> str | list[str]:
    """Return the label name of the targets; for multi_label a list of names."""
    if labels.kind == "multi_label":
        return [name for name, on in zip(labels.names, targets_K.tolist(), strict=True) if on]
    return labels.names[int(targets_K[0])]


def _majority_class(targets_NK: np.ndarray, labels: Labels) -> np.ndarray:
    """Decision of the majority-class baseline, int64 [K]."""
    if labels.kind == "multi_label":
        return (targets_NK.mean(0) > 0.5).astype(np.int64)
    return np.array([np.bincount(targets_NK[:, 0]).argmax()])

"""Scoring a classifier: logits of every row, the losses of its labels, and what was predicted by name."""

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
    """By row, N of them: row ids int64 [N], ascending; targets int64 [N, K] as documents end in them; probabilities
    float64 [N, C], of each label for single_label, of the positive else."""

    row: np.ndarray
    targets: np.ndarray
    probabilities: np.ndarray

    def decided(self, kind: str) -> np.ndarray:
        """int64 [N, K]: the likeliest label's number, or 1 where a label is likelier than not."""
        if kind == "single_label":
            return self.probabilities.argmax(1)[:, None]
        return (self.probabilities > 0.5).astype(np.int64)


def classify_index(loss: ClassificationLoss, index: TokenIndex) -> tuple[ExampleScores, Predictions]:
    """Sums by row as `score_index` gives them (num_tokens counts targets), and the predictions, over the index."""
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
            found = loss.classify(tokens_T, labels_T, positions_T, flat.lengths)
            rows += [sample.rows[0] for sample in samples]
            sums += found.loss.double().sum(1).tolist()
            hits += loss.hits(found).sum(1).tolist()
            logits.append(found.logits.double().cpu())
            targets.append(found.targets.cpu())
    scores = by_row(rows, sums, [loss.labels.num_targets] * len(rows), hits)
    order = np.argsort(np.array(rows), kind="stable")
    logits_NC = torch.cat(logits)[order]
    single = loss.labels.kind == "single_label"
    probabilities_NC = logits_NC.softmax(-1) if single else logits_NC.sigmoid()
    return scores, Predictions(scores.row, torch.cat(targets)[order].numpy(), probabilities_NC.numpy())


def measures_of(found: Predictions, labels: Labels) -> dict[str, Any]:
    """The event's `classification`: {"kind", "metrics": {name: value}, "errors": {name: standard error}, "majority"}.

    Metrics of what was decided and, where a probability is one, of the probabilities; by label as name/label. majority:
    accuracy and macro-F1 of always saying the commonest. A metric that is not defined on these rows is null.
    """
    measured = measured_of(found, labels)
    values = {name: _number(m.value) for name, m in measured.items()}
    errors = {name: _number(m.error) for name, m in measured.items() if "/" not in name}
    guess = np.broadcast_to(_commonest(found.targets, labels), found.targets.shape)
    guessed = _decisions(found.targets, guess, labels)
    majority = {name: _number(guessed[name].value) for name in _HEADLINES if name in guessed}
    return {"kind": labels.kind, "metrics": values, "errors": errors, "majority": majority}


def measured_of(found: Predictions, labels: Labels) -> dict[str, Measured]:
    """The metrics of `measures_of`, each with what every row adds to its error."""
    return {_named(name, labels): measured for name, measured in _measured(found, labels).items()}


_HEADLINES = ("accuracy", "subset_accuracy", "f1_macro")


def _measured(found: Predictions, labels: Labels) -> dict[str, Measured]:
    decided = found.decided(labels.kind)
    measured = _decisions(found.targets, decided, labels)
    if labels.kind == "multi_label":
        return measured | areas(found.targets == 1, found.probabilities)
    probabilities = found.probabilities
    if labels.kind == "binary":
        probabilities = np.concatenate([1.0 - probabilities, probabilities], axis=1)
    return measured | probabilistic(found.targets[:, 0], probabilities)


def _decisions(targets: np.ndarray, decided: np.ndarray, labels: Labels) -> dict[str, Measured]:
    if labels.kind == "multi_label":
        return multi_label(targets == 1, decided == 1)
    return single_label(targets[:, 0], decided[:, 0], len(labels.names))


def _named(metric: str, labels: Labels) -> str:
    """Metrics of one class end in its number: here it has a name."""
    name, _, number = metric.partition("/")
    return f"{name}/{labels.names[int(number)]}" if number else name


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def write_predictions(path: Path, scores: ExampleScores, found: Predictions, labels: Labels) -> None:
    """As `write_scores`, with "label", "predicted" and "probabilities" by the names of the logits."""
    lines = []
    decided = found.decided(labels.kind)
    for number, row in enumerate(found.row.tolist()):
        loss = float(scores.loss_sum[number]) / int(scores.num_tokens[number])
        shown = zip(labels.shown, found.probabilities[number].tolist(), strict=True)
        lines.append(
            json.dumps(
                {
                    "id": row,
                    "loss": loss if math.isfinite(loss) else str(loss),
                    "num_tokens": int(scores.num_tokens[number]),
                    "num_correct": int(scores.num_correct[number]),
                    "label": named(found.targets[number], labels),
                    "predicted": named(decided[number], labels),
                    "probabilities": {name: round(value, 6) for name, value in shown},
                },
                ensure_ascii=False,
            )
        )
    write_text(path, "".join(f"{line}\n" for line in lines))


def named(targets_K: np.ndarray, labels: Labels) -> str | list[str]:
    """Targets in names: one, or for multi_label a list."""
    if labels.kind == "multi_label":
        return [name for name, on in zip(labels.names, targets_K.tolist(), strict=True) if on]
    return labels.names[int(targets_K[0])]


def _commonest(targets_NK: np.ndarray, labels: Labels) -> np.ndarray:
    """int64 [K]: what a guess without looking would say."""
    if labels.kind == "multi_label":
        return (targets_NK.mean(0) > 0.5).astype(np.int64)
    return np.array([np.bincount(targets_NK[:, 0]).argmax()])

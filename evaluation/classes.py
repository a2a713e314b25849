"""Scoring a classifier: logits of every row, the losses of its labels, and what was predicted by name."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.data.index import TokenIndex
from tunesmith.data.loader import micro_batch
from tunesmith.evaluation.results import ExampleScores
from tunesmith.evaluation.score import batches, budget_of, by_row, device_of, evaluating
from tunesmith.modeling.classification_loss import ClassificationLoss
from tunesmith.modeling.heads import Labels
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
    lengths = {document: index.document(document).lengths[0] for document in range(index.num_documents)}
    rows: list[int] = []
    sums: list[float] = []
    hits: list[int] = []
    logits, targets = [], []
    device = device_of(loss)
    with evaluating(loss), torch.no_grad():
        for batch in batches(lengths, budget_of(loss)):
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
    """The event's `classification`: accuracy and F1 of what was decided, and those of always saying the commonest."""
    decided = found.decided(labels.kind)
    majority = np.broadcast_to(_commonest(found.targets, labels), decided.shape)
    return {
        "kind": labels.kind,
        "accuracy": float((decided == found.targets).all(1).mean()),
        "majority_accuracy": float((majority == found.targets).all(1).mean()),
        "macro_f1": _macro_f1(found.targets, decided, labels),
        "majority_macro_f1": _macro_f1(found.targets, majority, labels),
    }


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


def _macro_f1(targets_NK: np.ndarray, decided_NK: np.ndarray, labels: Labels) -> float:
    """Mean of the labels' F1; 0 for a label that is neither there nor predicted right. Of single and binary tasks over
    all labels that occur, as scikit-learn's."""
    if labels.kind == "multi_label":
        pairs = [(targets_NK[:, k] == 1, decided_NK[:, k] == 1) for k in range(len(labels.names))]
    else:
        occurring = np.union1d(targets_NK, decided_NK).tolist()
        pairs = [(targets_NK[:, 0] == c, decided_NK[:, 0] == c) for c in occurring]
    values = []
    for true, said in pairs:
        both, either = int((true & said).sum()), int(true.sum() + said.sum())
        values.append(2 * both / either if either else 0.0)
    return float(np.mean(values))

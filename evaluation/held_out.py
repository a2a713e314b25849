"""Scoring the held-out rows of a run by task: losses and task metrics."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.configs.plan import DataSetFacts
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.index.unrelated import ReferenceScores
from tunesmith.evaluation.classes import classify_index, measures_of, write_predictions
from tunesmith.evaluation.kto import score_ratings
from tunesmith.evaluation.metrics.language import loss_of
from tunesmith.evaluation.pairs import score_pairs
from tunesmith.evaluation.results import ExampleScores, write_scores
from tunesmith.evaluation.score import score_index
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.classification import ClassificationLoss
from tunesmith.modeling.losses.kto import KtoLoss
from tunesmith.modeling.losses.preference import PreferenceLoss

Facts = dict[str, Any]
"""Fields of an `evaluation` event. Perplexity is included for token losses only."""
Scored = tuple[ExampleScores, Facts]
"""Sums by row, and the fields over all rows."""
_OF_DATASETS = ("loss", "loss_error", "token_accuracy", "num_examples", "num_tokens")


def score_held_out(
    task: str,
    loss: CausalLoss,
    index: TokenIndex,
    path: Path | None,
    *,
    reference: ReferenceScores | None = None,
    datasets: Sequence[DataSetFacts] = (),
) -> Facts:
    """Score the held-out rows.

    task: task of the recipe. loss: its loss module. path: output file with one line per row, or None. reference: scores
    by the untrained model, for tasks that compare with it. datasets: those of the plan, which are also scored one by
    one.
    """
    scores, facts = SCORERS[task](loss, index, path, reference)
    return facts | dataset_facts(scores, datasets)


def token_facts(scores: ExampleScores, path: Path | None, datasets: Sequence[DataSetFacts] = ()) -> Facts:
    """Return the fields of an `evaluation` event for a token loss. path, datasets: as in `score_held_out`."""
    if path is not None:
        write_scores(path, scores)
    return asdict(loss_of(scores)) | dataset_facts(scores, datasets)


def dataset_facts(scores: ExampleScores, datasets: Sequence[DataSetFacts]) -> Facts:
    """Return the field `datasets` of an `evaluation` event: loss, its standard error, rows and tokens of each data set
    that has scored rows. Empty if there are no data sets."""
    by_name = {}
    for each in datasets:
        chosen = np.zeros(len(scores), np.bool_)
        for first, stop in each.row_ranges:
            chosen |= (scores.row >= first) & (scores.row < stop)
        if scores.num_tokens[chosen].any():
            metrics = asdict(loss_of(scores.of(chosen)))
            by_name[each.name] = {name: metrics[name] for name in _OF_DATASETS}
    return {"datasets": by_name} if by_name else {}


def _score_tokens(loss: CausalLoss, index: TokenIndex, path: Path | None, reference: ReferenceScores | None) -> Scored:
    scores = score_index(loss, index)
    return scores, token_facts(scores, path)


def _score_labels(
    loss: ClassificationLoss, index: TokenIndex, path: Path | None, reference: ReferenceScores | None
) -> Scored:
    scores, predictions = classify_index(loss, index)
    if path is not None:
        write_predictions(path, scores, predictions, loss.labels)
    measures = {"classification": measures_of(predictions, loss.labels)}
    return scores, _without_perplexity(asdict(loss_of(scores))) | measures


def _score_pairs(
    loss: PreferenceLoss, index: TokenIndex, path: Path | None, reference: ReferenceScores | None
) -> Scored:
    scores, margins = score_pairs(loss, index, reference)
    if path is not None:
        write_scores(path, scores)
    error = float(margins.std(ddof=1) / np.sqrt(len(margins))) if len(margins) > 1 else None
    facts = {"loss": loss.options.loss, "margin": float(margins.mean()), "margin_error": error}
    return scores, {**_without_perplexity(asdict(loss_of(scores))), "preference": facts}


def _score_ratings(loss: KtoLoss, index: TokenIndex, path: Path | None, reference: ReferenceScores | None) -> Scored:
    scores = score_ratings(loss, index, reference)
    if path is not None:
        write_scores(path, scores.examples)
    return scores.examples, {**_without_perplexity(asdict(loss_of(scores.examples))), "kto": scores.as_facts()}


def _without_perplexity(facts: Facts) -> Facts:
    return {key: value for key, value in facts.items() if not key.startswith(("perplexity", "bits_per_byte"))}


SCORERS: dict[str, Callable[[Any, TokenIndex, Path | None, ReferenceScores | None], Scored]] = {
    "chat": _score_tokens,
    "completion": _score_tokens,
    "text": _score_tokens,
    "classification": _score_labels,
    "seq2seq": _score_tokens,
    "preference": _score_pairs,
    "kto": _score_ratings,
}
"""By task. Arguments: the loss module of the task (modeling.losses.task_loss), index, path and reference."""

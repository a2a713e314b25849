"""Runs of other tasks than language modelling under `evaluate`: what they may be asked, a classifier's measures."""

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.errors import InputError
from tunesmith.evaluation.candidates import CandidateResult
from tunesmith.evaluation.classes import classify_index, measured_of, write_predictions
from tunesmith.evaluation.metrics.language import LossMetrics, language, loss_of
from tunesmith.evaluation.subject import Subject
from tunesmith.modeling.losses.classification import ClassificationLoss


def require_language_model(subject: Subject, what: str) -> None:
    """InputError where the subject is a run whose model continues no text. what: the option that asks it to."""
    if subject.plan is not None and not subject.plan.recipe.task_facts.is_causal:
        raise InputError(
            f"a run of the task {subject.plan.recipe.task} is scored by itself",
            where=f"{subject.name} with {what}",
            remedy=f"leave {what} out: `tunesmith evaluate RUN --data FILE` gives the measures of its task",
        )


def classify(subject: Subject, index: Path, path: Path | None) -> CandidateResult:
    """A classifier's loss and the measures of its labels, computed here. path: of a line a row; None: none."""
    loss = cast("ClassificationLoss", subject.load())  # a run of this task has no other
    scores, predictions = classify_index(loss, TokenIndex.open(index))
    if path is not None:
        write_predictions(path, scores, predictions, loss.labels)
    return CandidateResult(scores, [], {"loss": language(scores)["loss"], **measured_of(predictions, loss.labels)}, {})


def loss_of_labels(found: CandidateResult) -> LossMetrics:
    """As `loss_of`, without a perplexity: labels are no text."""
    return replace(loss_of(found.scores), perplexity=math.nan, perplexity_error=None)

"""`evaluate` for tasks other than language modeling: supported options, and the metrics of classifiers."""

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
    """Raise InputError if the subject is a run without a causal language model. what: the option that requires one."""
    if subject.plan is not None and not subject.plan.recipe.task_facts.is_causal:
        raise InputError(
            f"a run of task {subject.plan.recipe.task} does not support {what}",
            where=subject.name,
            remedy=f"omit {what}: `tunesmith evaluate RUN --data FILE` computes the metrics of the task",
        )


def classify(subject: Subject, index: Path, path: Path | None) -> CandidateResult:
    """Compute a classifier's loss and label metrics in this process.

    path: output file with one line per row, or None.
    """
    loss = cast("ClassificationLoss", subject.load())  # the loss class of this task
    scores, predictions = classify_index(loss, TokenIndex.open(index))
    if path is not None:
        write_predictions(path, scores, predictions, loss.labels)
    return CandidateResult(scores, [], {"loss": language(scores)["loss"], **measured_of(predictions, loss.labels)}, {})


def loss_of_labels(result: CandidateResult) -> LossMetrics:
    """Like `loss_of`, without perplexity, which is undefined for labels."""
    return replace(loss_of(result.scores), perplexity=math.nan, perplexity_error=None)

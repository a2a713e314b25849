"""Scoring pairs of answers with the preference loss."""

import numpy as np
import torch

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.index.unrelated import ReferenceScores
from tunesmith.evaluation.log_probabilities import log_probabilities
from tunesmith.evaluation.results import ExampleScores
from tunesmith.modeling.losses.preference import PreferenceLoss, pair_losses


def score_pairs(
    loss: PreferenceLoss, index: TokenIndex, reference: ReferenceScores | None
) -> tuple[ExampleScores, np.ndarray]:
    """Return the loss of each pair, as of an example with one target, and the margins, float64 [P].

    A pair is correct if its margin is positive. reference: log-probabilities of the index, as for training.
    """
    values, counts = log_probabilities(loss, index)
    compared = None if reference is None else torch.from_numpy(np.asarray(reference.documents, np.float64))
    loss_P, margin_P = pair_losses(loss.options, torch.from_numpy(values), torch.from_numpy(counts), compared)
    pairs = [index.documents_of(sample) for sample in range(index.num_samples)]
    rows = np.array([index.document(int(documents[0])).rows[0] for documents in pairs], np.int64)
    order = np.argsort(rows, kind="stable")
    margins = margin_P.numpy()[order]
    scores = ExampleScores(
        row=rows[order],
        loss_sum=loss_P.numpy()[order],
        num_tokens=np.ones(len(rows), np.int64),
        num_correct=(margins > 0).astype(np.int64),
    )
    return scores, margins

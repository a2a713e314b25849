"""Scoring pairs of answers: the log-probability of every answer, and what the preference loss makes of them."""

from collections.abc import Sequence

import numpy as np
import torch

from tunesmith.data.index.loader import micro_batch
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.evaluation.results import ExampleScores
from tunesmith.evaluation.score import batches_of, budget_of, device_of
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.preference import PreferenceLoss, pair_losses
from tunesmith.modeling.mode import evaluating


def log_probabilities(
    loss: CausalLoss, index: TokenIndex, documents: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """float64 [D]: log-probability of each document's supervised tokens; int64 [D]: their number. Documents that are
    not among `documents` (None: all) stay zero."""
    values, counts = np.zeros(index.num_documents), np.zeros(index.num_documents, np.int64)
    chosen = range(index.num_documents) if documents is None else documents
    device = device_of(loss)
    with evaluating(loss), torch.no_grad():
        for batch in batches_of(index, chosen, budget_of(loss)):
            flat = micro_batch([index.document(document) for document in batch])
            tokens_T, labels_T, positions_T = (
                torch.from_numpy(array).to(device) for array in (flat.tokens, flat.labels, flat.positions)
            )
            sums = loss.score(tokens_T, labels_T, positions_T, flat.lengths)
            values[batch], counts[batch] = -np.asarray(sums.loss_sum), np.asarray(sums.num_supervised)
    return values, counts


def score_pairs(
    loss: PreferenceLoss, index: TokenIndex, reference: np.ndarray | None
) -> tuple[ExampleScores, np.ndarray]:
    """Loss of each pair, as that of an example with one target, and the margin of each, float64 [P]. A hit is a pair
    whose better answer is preferred. reference: [D], as for training."""
    values, counts = log_probabilities(loss, index)
    compared = None if reference is None else torch.from_numpy(np.asarray(reference, np.float64))
    loss_P, margin_P = pair_losses(loss.wanted, torch.from_numpy(values), torch.from_numpy(counts), compared)
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

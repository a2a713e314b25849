"""Log-probabilities of answers: of every document of an index, or of unrelated pairs."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from tunesmith.data.index.loader import micro_batch
from tunesmith.data.index.token_index import Sample, TokenIndex
from tunesmith.evaluation.score import batches, batches_of, budget_of, device_of
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.mode import evaluating


def log_probabilities(
    loss: CausalLoss, index: TokenIndex, documents: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-probability of each document's supervised tokens, float64 [D], and their number, int64 [D].

    Documents that are not in `documents` (None: all) are zero.
    """
    chosen = range(index.num_documents) if documents is None else documents
    plan = batches_of(index, chosen, budget_of(loss))
    return _scored(loss, index.num_documents, index.document, plan)


def sample_log_probabilities(
    loss: CausalLoss, count: int, sample_at: Callable[[int], Sample], chosen: Sequence[int] | None = None
) -> np.ndarray:
    """Like `log_probabilities`, float64 [count], for single-document samples that are created on demand."""
    lengths = {number: len(sample_at(number).tokens) for number in (range(count) if chosen is None else chosen)}
    return _scored(loss, count, sample_at, batches(lengths, budget_of(loss)))[0]


def _scored(
    loss: CausalLoss, count: int, sample_at: Callable[[int], Sample], plan: Iterable[list[int]]
) -> tuple[np.ndarray, np.ndarray]:
    values, counts = np.zeros(count), np.zeros(count, np.int64)
    device = device_of(loss)
    with evaluating(loss), torch.no_grad():
        for batch in plan:
            flat = micro_batch([sample_at(number) for number in batch])
            tokens_T, labels_T, positions_T = (
                torch.from_numpy(array).to(device) for array in (flat.tokens, flat.labels, flat.positions)
            )
            sums = loss.score(tokens_T, labels_T, positions_T, flat.lengths)
            values[batch], counts[batch] = -np.asarray(sums.loss_sum), np.asarray(sums.num_supervised)
    return values, counts

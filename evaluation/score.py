"""Score a model on a token index: for every row the summed loss over its supervised tokens.

Documents are laid end to end without padding, none sees another, and the sums are taken by document; so neither the
batch budget nor the order of rows changes a result beyond the rounding of the matrix products.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from tunesmith.data.index import TokenIndex
from tunesmith.data.loader import micro_batch
from tunesmith.evaluation.results import ExampleScores
from tunesmith.modeling.causal_loss import CausalLoss


def score_index(
    model: CausalLoss,
    index: TokenIndex,
    *,
    max_tokens_per_batch: int | None = None,
    documents: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExampleScores:
    """Sums by row over the index, or over the given documents of it (a rank's share, say `range(rank, n, world)`).

    max_tokens_per_batch bounds memory; a longer document is a batch of its own. None: 8192 on a GPU; 2048 on a CPU,
    where more is no faster (SmolLM2-135M, one AVX2 core: 230 to 270 tokens/s from 512 to 4096, 200 at 8192).
    progress is called with (documents done, documents in all) after every batch. Precision is the loss module's.
    Dropout and noise are off while scoring; the model's mode is restored.
    """
    chosen = range(index.num_documents) if documents is None else documents
    lengths = {document: index.document(document).lengths[0] for document in chosen}
    rows, loss_sums, num_tokens, num_correct = [], [], [], []
    device = device_of(model)
    budget = max_tokens_per_batch or budget_of(model)
    with evaluating(model), torch.no_grad():
        for batch in batches(lengths, budget):
            samples = [index.document(document) for document in batch]
            flat = micro_batch(samples)
            tokens_T, labels_T, positions_T = (
                torch.from_numpy(array).to(device) for array in (flat.tokens, flat.labels, flat.positions)
            )
            sums = model.score(tokens_T, labels_T, positions_T, flat.lengths)
            rows += [sample.rows[0] for sample in samples]
            loss_sums += list(map(float, sums.loss_sum))
            num_tokens += list(map(int, sums.num_supervised))
            num_correct += list(map(int, sums.num_correct))
            if progress is not None:
                progress(len(rows), len(lengths))
    return by_row(rows, loss_sums, num_tokens, num_correct)


def batches(lengths: dict[int, int], max_tokens: int) -> Iterator[list[int]]:
    """Documents in batches of at most max_tokens tokens, the longest first: what does not fit memory fails at once.

    Documents of a batch are alike in length, so that attention, which costs the square of it, is even.
    """
    batch: list[int] = []
    size = 0
    for document in sorted(lengths, key=lambda document: (-lengths[document], document)):
        if batch and size + lengths[document] > max_tokens:
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += lengths[document]
    if batch:
        yield batch


def by_row(
    rows: Sequence[int], loss_sums: Sequence[float], num_tokens: Sequence[int], num_correct: Sequence[int]
) -> ExampleScores:
    """Sums by row, ordered by row id. Documents cut from one row are no independent examples: they count as one."""
    order = np.argsort(np.asarray(rows, dtype=np.int64), kind="stable")
    unique, starts = np.unique(np.asarray(rows, dtype=np.int64)[order], return_index=True)
    members = np.split(order, starts[1:]) if len(unique) else []
    return ExampleScores(
        row=unique,
        loss_sum=np.array([math.fsum(loss_sums[i] for i in group) for group in members], dtype=np.float64),
        num_tokens=np.array([sum(num_tokens[i] for i in group) for group in members], dtype=np.int64),
        num_correct=np.array([sum(num_correct[i] for i in group) for group in members], dtype=np.int64),
    )


def join_scores(parts: Sequence[ExampleScores]) -> ExampleScores:
    """The shares of several ranks as one."""
    return by_row(
        [row for part in parts for row in part.row.tolist()],
        [loss_sum for part in parts for loss_sum in part.loss_sum.tolist()],
        [count for part in parts for count in part.num_tokens.tolist()],
        [count for part in parts for count in part.num_correct.tolist()],
    )


def budget_of(model: torch.nn.Module) -> int:
    """Tokens of a batch by default."""
    return 2048 if device_of(model).type == "cpu" else 8192


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for the time; every module gets back the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

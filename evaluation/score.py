"""Score a model on a token index: the summed loss over the supervised tokens of every row.

Documents are concatenated without padding, do not attend to each other, and are summed separately; logits are computed
one chunk at a time. Batches are formed by length and content, so results do not depend on the order of rows. Since
every matrix product has at least STABLE_ROWS rows, results on a CPU do not depend on the batch size either (tested bit
for bit).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from tunesmith.data.index.loader import micro_batch
from tunesmith.data.index.token_index import Sample, TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.evaluation.results import ExampleScores
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.mode import evaluating
from tunesmith.progress import advance

STABLE_ROWS = 32


@dataclass(frozen=True)
class DocumentScore:
    """Sums over the supervised tokens of a document, as in ExampleScores."""

    document: int
    row: int
    loss_sum: float
    num_tokens: int
    num_correct: int
    num_bytes: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return a JSON object. A non-finite loss becomes a string, since JSON has none."""
        return {**vars(self), "loss_sum": self.loss_sum if math.isfinite(self.loss_sum) else str(self.loss_sum)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "DocumentScore":
        return cls(**{**raw, "loss_sum": float(raw["loss_sum"])})


def score_index(
    model: CausalLoss,
    index: TokenIndex,
    *,
    max_tokens_per_batch: int | None = None,
    max_sequences: int | None = None,
    documents: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExampleScores:
    """Return sums by row over the index or the given documents (such as a rank's share, `range(rank, n, world)`).

    max_tokens_per_batch limits memory; a longer document is a batch by itself. None: 8192 on a GPU; 2048 on a CPU,
    where more is not faster (SmolLM2-135M, one AVX2 core: 230 to 270 tokens/s from 512 to 4096, 200 at 8192).
    max_sequences: maximum number of documents per batch. tokenizer: if given, the bytes of the supervised text are
    counted. progress: called with (documents done, total documents) after every batch. The precision is that of the
    loss module. Dropout and noise are disabled while scoring; the mode of the model is restored.
    """
    chosen = range(index.num_documents) if documents is None else documents
    plan = batches_of(index, chosen, max_tokens_per_batch or budget_of(model), max_sequences)
    scores: list[DocumentScore] = []
    for batch in plan:
        scores += score_documents(model, index, batch, tokenizer)
        if progress is not None:
            progress(len(scores), len(chosen))
    return scores_of(scores)


def score_documents(
    model: CausalLoss, index: TokenIndex, documents: Sequence[int], tokenizer: Tokenizer | None = None
) -> list[DocumentScore]:
    """Score one batch: the documents are concatenated and scored in one forward pass."""
    samples = [index.document(document) for document in documents]
    flat = micro_batch(_with_filler(samples) if type(model) is CausalLoss else samples)
    device = device_of(model)
    with evaluating(model), torch.no_grad():
        tokens_T, labels_T, positions_T = (
            torch.from_numpy(array).to(device) for array in (flat.tokens, flat.labels, flat.positions)
        )
        sums = model.score(tokens_T, labels_T, positions_T, flat.lengths)
    return [
        DocumentScore(
            document=int(document),
            row=sample.rows[0],
            loss_sum=float(sums.loss_sum[position]),
            num_tokens=int(sums.num_supervised[position]),
            num_correct=int(sums.num_correct[position]),
            num_bytes=None if tokenizer is None else supervised_bytes(sample, tokenizer),
        )
        for position, (document, sample) in enumerate(zip(documents, samples, strict=True))
    ]


def _with_filler(samples: list[Sample]) -> list[Sample]:
    """Append a dummy document if there are too few tokens or targets; its result is ignored.

    Small matrix products use different kernels: below STABLE_ROWS rows the last bits of a row depend on the number of
    rows, above they do not (MKL, AVX2, fp32, inner sizes 4 to 1536).
    """
    tokens, targets = (sum(counts) for counts in zip(*((len(s.tokens), s.supervised.sum()) for s in samples)))  # noqa: B905
    if tokens >= STABLE_ROWS and targets >= STABLE_ROWS:
        return samples
    size = STABLE_ROWS + 1  # the first token of a document is not a target
    filler = Sample(np.zeros(size, np.uint32), np.arange(size) > 0, [size], [-1])
    return [*samples, filler]


def supervised_bytes(sample: Sample, tokenizer: Tokenizer) -> int:
    """Return the number of UTF-8 bytes of the supervised text, without special tokens."""
    targets = np.flatnonzero(sample.supervised)
    runs = np.split(targets, np.flatnonzero(np.diff(targets) > 1) + 1)
    return sum(len(tokenizer.decode(sample.tokens[run].tolist()).encode("utf-8")) for run in runs)


def batches_of(
    index: TokenIndex, documents: Sequence[int], max_tokens: int, max_sequences: int | None = None
) -> list[list[int]]:
    """Group documents into batches, see `batches`. Ties in length are ordered by content, so that the same rows in a
    different order give the same batches."""
    samples = {}
    for document in documents:
        samples[document] = index.document(document)
        advance()
    content = {
        d: blake2b(s.tokens.tobytes() + s.supervised.tobytes(), digest_size=8).digest() for d, s in samples.items()
    }
    lengths = {document: sample.lengths[0] for document, sample in samples.items()}
    return list(batches(lengths, max_tokens, max_sequences, content))


def batches(
    lengths: dict[int, int],
    max_tokens: int,
    max_sequences: int | None = None,
    content: dict[int, bytes] | None = None,
) -> Iterator[list[int]]:
    """Group documents into batches of at most max_tokens tokens and max_sequences documents.

    The longest documents come first, so that a batch that exceeds memory fails at once. The documents of a batch have
    similar lengths, since the cost of attention is quadratic in length.
    """
    batch: list[int] = []
    size = 0
    for document in sorted(lengths, key=lambda d: (-lengths[d], content[d] if content else b"", d)):
        if batch and (size + lengths[document] > max_tokens or len(batch) == max_sequences):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += lengths[document]
    if batch:
        yield batch


def scores_of(documents: Sequence[DocumentScore]) -> ExampleScores:
    """Aggregate documents by row. Bytes are included if every document has them."""
    num_bytes = [score.num_bytes for score in documents if score.num_bytes is not None]
    return by_row(
        [score.row for score in documents],
        [score.loss_sum for score in documents],
        [score.num_tokens for score in documents],
        [score.num_correct for score in documents],
        num_bytes if len(num_bytes) == len(documents) else None,
    )


def by_row(
    rows: Sequence[int],
    loss_sums: Sequence[float],
    num_tokens: Sequence[int],
    num_correct: Sequence[int],
    num_bytes: Sequence[int] | None = None,
) -> ExampleScores:
    """Aggregate sums by row, ordered by row id: documents of the same row are not independent examples."""
    order = np.argsort(np.asarray(rows, dtype=np.int64), kind="stable")
    unique, starts = np.unique(np.asarray(rows, dtype=np.int64)[order], return_index=True)
    members = np.split(order, starts[1:]) if len(unique) else []
    return ExampleScores(
        row=unique,
        loss_sum=np.array([math.fsum(loss_sums[i] for i in group) for group in members], dtype=np.float64),
        num_tokens=np.array([sum(num_tokens[i] for i in group) for group in members], dtype=np.int64),
        num_correct=np.array([sum(num_correct[i] for i in group) for group in members], dtype=np.int64),
        num_bytes=None
        if num_bytes is None
        else np.array([sum(num_bytes[i] for i in group) for group in members], dtype=np.int64),
    )


def budget_of(model: torch.nn.Module) -> int:
    """Default number of tokens per batch."""
    return 2048 if device_of(model).type == "cpu" else 8192


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device

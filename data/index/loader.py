"""Load the micro-batches of a step from a token index: fixed globally, sharded over ranks, resumable at any step.

Positions are numbered consecutively over all epochs. Step s (the first is 1) takes positions [(s-1)*G, s*G) of
epoch_samples * epochs, where G is the global batch size; the last step may be smaller. The order (data/index/order.py)
gives the sample of a position. Rank r takes every world_size-th sample of the step, starting at r.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunesmith.data.index.order import PlainOrder, SampleOrder
from tunesmith.data.index.token_index import Sample, TokenIndex
from tunesmith.data.index.unrelated import ReferenceScores, others_of, unrelated_sample

IGNORED = -100  # label of positions without a target; torch's default for ignore_index


@dataclass(frozen=True)
class MicroBatch:
    """Concatenated documents without padding. All arrays int64 [T]. labels[t]: the token after t if it is supervised
    and in the same document, else -100. positions restart at 0 with each document. lengths: tokens per document.
    num_supervised: number of labels that are not -100. filler: a micro-batch with all labels -100, so that all ranks
    have equally many. reference: float32 [D], the reference log-probability of each document; None for most tasks."""

    tokens: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    lengths: list[int]
    num_supervised: int
    filler: bool = False
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class StepBatch:
    """The batch of one rank in one step. Counts without `global_` are this rank's, without fillers.

    micro_batches: equally many on every rank. samples: in the order of the micro-batches. rows: of their documents.
    global_targets: number of targets that the step's loss is averaged over, supervised tokens or samples. epoch: epochs
    completed after the step. unrelated: prompts paired with other rows' answers (data/index/unrelated.py); None for
    most tasks. global_num_samples: over all ranks.
    """

    step: int
    micro_batches: list[MicroBatch]
    samples: list[int]
    rows: list[int]
    num_tokens: int
    supervised_tokens: int
    global_num_tokens: int
    global_supervised_tokens: int
    global_targets: int
    epoch: float
    global_num_samples: int
    unrelated: list[MicroBatch] | None = None


class Loader:
    """Batches of one rank. Stateless: `step_batch` takes the same time for any step, in any order."""

    def __init__(
        self,
        index: TokenIndex,
        *,
        seed: int,
        epochs: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        max_steps: int | None = None,
        counts_samples: bool = False,
        reference: ReferenceScores | None = None,
        unrelated: bool = False,
        filler_lengths: Sequence[int] = (2,),
    ):
        """counts_samples: whether a step's loss is the mean over its samples, not over its supervised tokens.
        reference: reference scores of the index. unrelated: whether steps include unrelated pairs. filler_lengths:
        tokens of a filler's documents, matching the task's structure."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        if min(epochs, global_batch_size, micro_batch_size, index.num_samples) < 1:
            raise ValueError("epochs, batch sizes and the number of samples must be at least 1")
        self.index, self.epochs = index, epochs
        self.order: SampleOrder = PlainOrder(seed, index.num_samples)
        self.global_batch_size = global_batch_size
        self.micro_batch_size, self.passes_per_sequence = micro_batch_size, 1
        self.rank, self.world_size = rank, world_size
        self.counts_samples, self.reference, self.unrelated = counts_samples, reference, unrelated
        self._filler_lengths = list(filler_lengths)
        self._max_steps = max_steps

    @property
    def num_positions(self) -> int:
        return self.order.epoch_samples * self.epochs

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        steps = math.ceil(self.num_positions / self.global_batch_size)
        return steps if self._max_steps is None else min(steps, self._max_steps)

    def with_order(self, order: SampleOrder) -> "Loader":
        """Return a loader of the same rows in another order, that of a mixture."""
        loader = copy.copy(self)
        loader.order = order
        return loader

    def with_passes(self, micro_batch_size: int, passes_per_sequence: int) -> "Loader":
        """Return a loader of the same rows in the same order, in passes of another size, both as in the plan."""
        loader = copy.copy(self)
        loader.micro_batch_size, loader.passes_per_sequence = micro_batch_size, passes_per_sequence
        return loader

    def step_batch(self, step: int) -> StepBatch:
        """Return this rank's batch of a step; the first step is 1. Raises IndexError outside 1..total_steps."""
        if not 1 <= step <= self.total_steps:
            raise IndexError(f"step {step} of {self.total_steps}")
        global_samples = self.step_samples(step)
        rank_samples = global_samples[self.rank :: self.world_size].tolist()
        global_supervised_tokens = int(self.index.sample_supervised[global_samples].sum())
        size = self.micro_batch_size
        count = math.ceil(math.ceil(len(global_samples) / self.world_size) / size)
        micro_batches, rows, num_tokens = [], [], 0
        for start in range(0, count * size, size):
            numbers = rank_samples[start : start + size]
            samples = [self.index.sample(number) for number in numbers]
            if self.passes_per_sequence > 1:
                micro_batches += self._parts(samples)
            else:
                batch = micro_batch(samples) if samples else filler(self._filler_lengths)
                micro_batches.append(self._with_reference(batch, numbers))
            rows.extend(row for sample in samples for row in sample.rows)
            num_tokens += sum(len(sample.tokens) for sample in samples)
        return StepBatch(
            step=step,
            micro_batches=micro_batches,
            samples=rank_samples,
            rows=rows,
            num_tokens=num_tokens,
            supervised_tokens=sum(batch.num_supervised for batch in micro_batches),
            global_num_tokens=int(self.index.sample_tokens[global_samples].sum()),
            global_supervised_tokens=global_supervised_tokens,
            global_targets=len(global_samples) if self.counts_samples else global_supervised_tokens,
            epoch=min(step * self.global_batch_size, self.num_positions) / self.order.epoch_samples,
            global_num_samples=len(global_samples),
            unrelated=self._unrelated(step, len(global_samples)) if self.unrelated else None,
        )

    @property
    def num_unrelated(self) -> int:
        """Number of unrelated pairs of the run: one for each position of each step."""
        return min(self.num_positions, self.total_steps * self.global_batch_size)

    def unrelated_at(self, position: int) -> Sample:
        """Return the unrelated pair of a position of the run, counted over all steps and ranks."""
        step, offset = divmod(position, self.global_batch_size)
        samples = self.step_samples(step + 1)
        return unrelated_sample(self.index, int(samples[offset]), int(others_of(samples)[offset]))

    def _unrelated(self, step: int, size: int) -> list[MicroBatch]:
        """Return this rank's unrelated pairs of a step. size: samples of the global batch."""
        first = (step - 1) * self.global_batch_size
        positions, batches = range(first, first + size)[self.rank :: self.world_size], []
        for start in range(0, len(positions), self.micro_batch_size):
            chosen = list(positions[start : start + self.micro_batch_size])
            batch = micro_batch([self.unrelated_at(position) for position in chosen])
            if self.reference is not None and self.reference.unrelated is not None:
                batch = replace(batch, reference=np.asarray(self.reference.unrelated[chosen], np.float32))
            batches.append(batch)
        return batches

    def _parts(self, samples: list[Sample]) -> list[MicroBatch]:
        """Return the passes of at most one packed sequence; equally many on every rank, with fillers."""
        parts = [part for sample in samples for part in split(sample, self.passes_per_sequence)]
        batches = [micro_batch([part]) for part in parts if part.supervised.any()]
        return batches + [filler(self._filler_lengths) for _ in range(self.passes_per_sequence - len(batches))]

    def _with_reference(self, batch: MicroBatch, samples: list[int]) -> MicroBatch:
        if self.reference is None:
            return batch
        documents = [self.index.documents_of(number) for number in samples] or [np.zeros(0, np.int64)]
        values = (
            self.reference.documents[np.concatenate(documents)] if samples else np.zeros(len(batch.lengths), np.float32)
        )
        return replace(batch, reference=np.asarray(values, np.float32))

    def step_samples(self, step: int) -> np.ndarray:
        """Return the samples of a step over all ranks, int64, in position order."""
        first = (step - 1) * self.global_batch_size
        return self.order.samples(first, min(first + self.global_batch_size, self.num_positions))


def micro_batch(samples: list[Sample]) -> MicroBatch:
    """Concatenate samples. A document's first token is never supervised, so no label crosses documents."""
    tokens = np.concatenate([sample.tokens for sample in samples]).astype(np.int64)
    supervised = np.concatenate([sample.supervised for sample in samples])
    lengths = [length for sample in samples for length in sample.lengths]
    labels = np.full(len(tokens), IGNORED, np.int64)
    labels[:-1] = np.where(supervised[1:], tokens[1:], IGNORED)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return MicroBatch(tokens, labels, positions, lengths, int(supervised[1:].sum()))


def split(sample: Sample, parts: int) -> list[Sample]:
    """Divide a sample at the boundaries of its documents into at most `parts` samples of about equally many tokens."""
    ends = np.cumsum(sample.lengths)
    # Twice the middle of each document, in integers; the part that contains it has the document.
    middles = 2 * ends - np.asarray(sample.lengths)
    part_of = middles * parts // (2 * int(ends[-1]))
    divided = []
    for part in np.unique(part_of):
        first, last = np.searchsorted(part_of, [part, part + 1])
        tokens = slice(int(ends[first - 1]) if first else 0, int(ends[last - 1]))
        divided.append(
            Sample(
                sample.tokens[tokens], sample.supervised[tokens], sample.lengths[first:last], sample.rows[first:last]
            )
        )
    return divided


def filler(lengths: list[int]) -> MicroBatch:
    """Return a minimal micro-batch without targets, for ranks that have one less than others. lengths: tokens of its
    documents, matching the task's structure."""
    total = sum(lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return MicroBatch(np.zeros(total, np.int64), np.full(total, IGNORED, np.int64), positions, lengths, 0, filler=True)

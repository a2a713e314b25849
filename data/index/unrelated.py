"""Prompts with the answers of other rows: what a loss that estimates a mean over unrelated answers is given beside its
batch (Task.needs_unrelated).

Of a batch x_1 y_1, x_2 y_2, ..., x_n y_n these are x_1 y_n, x_2 y_1, ..., x_n y_{n-1}: the same prompts and the same
answers. The batch is the global one, in the order of its positions, so that neither accumulation nor the number of
ranks changes them.
"""

from dataclasses import dataclass

import numpy as np

from tunesmith.data.index.token_index import Sample, TokenIndex


@dataclass(frozen=True)
class ReferenceScores:
    """Log-probabilities under the untrained model, float32. documents: [D], of each document of an index. unrelated:
    of each unrelated pair in the order of a run's samples, or of the documents; None where the task has none."""

    documents: np.ndarray
    unrelated: np.ndarray | None = None


def others_of(samples: np.ndarray) -> np.ndarray:
    """The samples whose answers stand behind the prompts of these. Of a batch of one it is the sample itself."""
    return np.roll(samples, 1)


def unrelated_sample(index: TokenIndex, sample: int, other: int) -> Sample:
    """The prompt of a sample with the answer of another one, as one document, cut to the index's max_seq_len."""
    asked, answering = index.sample(sample), index.sample(other)
    length = prompt_tokens(asked.supervised)
    answer = slice(prompt_tokens(answering.supervised), None)
    tokens = np.concatenate([asked.tokens[:length], answering.tokens[answer]])[: index.max_seq_len]
    supervised = np.concatenate([np.zeros(length, np.bool_), answering.supervised[answer]])[: index.max_seq_len]
    return Sample(tokens, supervised, [len(tokens)], asked.rows)


def unrelated_in(index: TokenIndex, sample: int) -> Sample:
    """The unrelated pair of a sample where the whole index is one batch."""
    return unrelated_sample(index, sample, (sample - 1) % index.num_samples)


def prompt_tokens(supervised: np.ndarray) -> int:
    """Tokens before the first supervised one; at least one, which nothing predicts."""
    return max(1, int(supervised.argmax()))

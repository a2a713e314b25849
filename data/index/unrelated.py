"""Unrelated pairs, prompts with the answers of other rows: additional input of losses that estimate a mean over
unrelated answers (Task.needs_unrelated).

For a batch x_1 y_1, x_2 y_2, ..., x_n y_n these are x_1 y_n, x_2 y_1, ..., x_n y_{n-1}: the same prompts and the same
answers. The batch is the global one, in position order, so that the pairs do not depend on accumulation or the number
of ranks.
"""

from dataclasses import dataclass

import numpy as np

from tunesmith.data.index.token_index import Sample, TokenIndex


@dataclass(frozen=True)
class ReferenceScores:
    """Log-probabilities under the untrained model, float32. documents: [D], by document of an index. unrelated: by
    unrelated pair, in the order of a run's samples or of the documents; None if the task needs none."""

    documents: np.ndarray
    unrelated: np.ndarray | None = None


def others_of(samples: np.ndarray) -> np.ndarray:
    """Return the samples whose answers are paired with the prompts of these; for a batch of one, the sample itself."""
    return np.roll(samples, 1)


def unrelated_sample(index: TokenIndex, sample: int, other: int) -> Sample:
    """Return the prompt of a sample with the answer of another one as one document, truncated to max_seq_len."""
    prompt, answer = index.sample(sample), index.sample(other)
    length = prompt_tokens(prompt.supervised)
    start = prompt_tokens(answer.supervised)
    tokens = np.concatenate([prompt.tokens[:length], answer.tokens[start:]])[: index.max_seq_len]
    supervised = np.concatenate([np.zeros(length, np.bool_), answer.supervised[start:]])[: index.max_seq_len]
    return Sample(tokens, supervised, [len(tokens)], prompt.rows)


def unrelated_in(index: TokenIndex, sample: int) -> Sample:
    """Return the unrelated pair of a sample, with the whole index as one batch."""
    return unrelated_sample(index, sample, (sample - 1) % index.num_samples)


def prompt_tokens(supervised: np.ndarray) -> int:
    """Return the number of tokens before the first supervised one, at least 1."""
    return max(1, int(supervised.argmax()))

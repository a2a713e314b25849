"""Language modeling metrics: loss, perplexity, bits per byte and token accuracy from sums by example.

Each is a ratio of sums over examples: loss is summed nats over supervised tokens, accuracy is correct tokens over
supervised tokens, bits per byte is summed nats over ln 2 times the bytes of the supervised text, which does not depend
on the vocabulary. Examples are independent samples, the tokens of an example are not: see `measure`.
"""

import math
from dataclasses import dataclass

import numpy as np

from tunesmith.errors import RunFault
from tunesmith.evaluation.metrics.measure import Difference, Measured, difference, ratio
from tunesmith.evaluation.results import ExampleScores


@dataclass(frozen=True)
class LossMetrics:
    """Metrics with standard errors, which are None for a single example.

    loss: nats per token. bits_per_byte: None if the bytes were not counted.
    """

    loss: float
    loss_error: float | None
    perplexity: float
    perplexity_error: float | None
    token_accuracy: float
    token_accuracy_error: float | None
    num_examples: int
    num_tokens: int
    bits_per_byte: float | None = None
    bits_per_byte_error: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Differences between two models on the same examples, second minus first."""

    loss: Difference
    token_accuracy: Difference
    num_examples: int


def loss_of(scores: ExampleScores) -> LossMetrics:
    """Return loss, perplexity, bits per byte and token accuracy over all supervised tokens, with standard errors.

    Raises RunFault if no token is supervised.
    """
    used = scores.num_tokens > 0
    if not used.any():
        raise RunFault(
            "no token of the evaluated rows is supervised",
            where=f"{len(scores)} rows",
            remedy="inspect the rows with `tunesmith data show`; for plain text set task: text",
        )
    metrics = language(scores)
    loss, accuracy, perplexity, bits = (
        metrics.get(name) for name in ("loss", "token_accuracy", "perplexity", "bits_per_byte")
    )
    assert loss is not None
    assert accuracy is not None
    assert perplexity is not None
    return LossMetrics(
        loss=loss.value,
        loss_error=loss.error,
        perplexity=perplexity.value,
        perplexity_error=perplexity.error,
        token_accuracy=accuracy.value,
        token_accuracy_error=accuracy.error,
        num_examples=int(used.sum()),
        num_tokens=int(scores.num_tokens.sum()),
        bits_per_byte=None if bits is None else bits.value,
        bits_per_byte_error=None if bits is None else bits.error,
    )


def language(scores: ExampleScores) -> dict[str, Measured]:
    """Return loss, perplexity, token_accuracy and, if bytes were counted, bits_per_byte.

    Ignores rows without targets.
    """
    used = scores.num_tokens > 0
    tokens = scores.num_tokens[used]
    loss = ratio(scores.loss_sum[used], tokens)
    perplexity = math.exp(loss.value) if loss.value < 700.0 else math.inf if loss.value == loss.value else math.nan
    metrics = {
        "loss": loss,
        "perplexity": Measured(perplexity, perplexity * loss.influence),  # d exp(R) = exp(R) dR
        "token_accuracy": ratio(scores.num_correct[used], tokens),
    }
    if scores.num_bytes is not None:
        metrics["bits_per_byte"] = ratio(scores.loss_sum[used] / math.log(2.0), scores.num_bytes[used])
    return metrics


def compare(before: ExampleScores, after: ExampleScores) -> Comparison:
    """Return the paired difference after - before. Raises RunFault if the two did not score the same tokens."""
    require_same_rows(before, after)
    first, second = language(before), language(after)
    return Comparison(
        loss=difference(first["loss"], second["loss"]),
        token_accuracy=difference(first["token_accuracy"], second["token_accuracy"]),
        num_examples=int((before.num_tokens > 0).sum()),
    )


def require_same_rows(before: ExampleScores, after: ExampleScores) -> None:
    """Raise RunFault if the two did not score the same tokens of the same rows."""
    if not (np.array_equal(before.row, after.row) and np.array_equal(before.num_tokens, after.num_tokens)):
        raise RunFault(
            "the two evaluations have different rows or tokens and cannot be compared row by row",
            where=f"{len(before)} and {len(after)} rows",
            remedy="evaluate both models on the same file, with the same tokenizer, template and max_seq_len",
        )

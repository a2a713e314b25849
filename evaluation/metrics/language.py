"""Language modelling: loss, perplexity, bits per byte and token accuracy from sums by example.

Each is a ratio of sums over examples: loss is summed nats over supervised tokens, accuracy is right tokens over
supervised tokens, bits per byte is summed nats over ln 2 times the bytes of the supervised text, which does not depend
on the vocabulary. Examples are independent draws, the tokens inside one are not: see `measure`.
"""

import math
from dataclasses import dataclass

import numpy as np

from tunesmith.errors import RunFault
from tunesmith.evaluation.metrics.measure import Difference, Measured, difference, ratio
from tunesmith.evaluation.results import ExampleScores


@dataclass(frozen=True)
class LossMetrics:
    """loss in nats per token; the errors are standard errors, None where one example alone gives none.
    bits_per_byte: None where the bytes of the rows were not counted."""

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
    """Two models over the same examples: what changed from the first to the second."""

    loss: Difference
    token_accuracy: Difference
    num_examples: int


def loss_of(scores: ExampleScores) -> LossMetrics:
    """Loss, perplexity, bits per byte and token accuracy over all supervised tokens, each with its standard error.

    Raises RunFault where no token is supervised: there is nothing to measure.
    """
    used = scores.num_tokens > 0
    if not used.any():
        raise RunFault(
            "no token of the evaluated rows is supervised: there is nothing to measure",
            where=f"{len(scores)} rows",
            remedy="look at the rows with `tunesmith data show`; for plain text set task: text",
        )
    found = language(scores)
    loss, accuracy, perplexity, bits = (
        found.get(name) for name in ("loss", "token_accuracy", "perplexity", "bits_per_byte")
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
    """loss, perplexity, token_accuracy and, where bytes were counted, bits_per_byte. Not over rows without a target."""
    used = scores.num_tokens > 0
    tokens = scores.num_tokens[used]
    loss = ratio(scores.loss_sum[used], tokens)
    perplexity = math.exp(loss.value) if loss.value < 700.0 else math.inf if loss.value == loss.value else math.nan
    found = {
        "loss": loss,
        "perplexity": Measured(perplexity, perplexity * loss.influence),  # d exp(R) = exp(R) dR
        "token_accuracy": ratio(scores.num_correct[used], tokens),
    }
    if scores.num_bytes is not None:
        found["bits_per_byte"] = ratio(scores.loss_sum[used] / math.log(2.0), scores.num_bytes[used])
    return found


def compare(before: ExampleScores, after: ExampleScores) -> Comparison:
    """The paired difference after - before. Raises RunFault where the two did not score the same tokens."""
    require_same_rows(before, after)
    first, second = language(before), language(after)
    return Comparison(
        loss=difference(first["loss"], second["loss"]),
        token_accuracy=difference(first["token_accuracy"], second["token_accuracy"]),
        num_examples=int((before.num_tokens > 0).sum()),
    )


def require_same_rows(before: ExampleScores, after: ExampleScores) -> None:
    """Raises RunFault where the two did not score the same tokens of the same rows."""
    if not (np.array_equal(before.row, after.row) and np.array_equal(before.num_tokens, after.num_tokens)):
        raise RunFault(
            "the two evaluations are not of the same rows and tokens: they cannot be compared row by row",
            where=f"{len(before)} and {len(after)} rows",
            remedy="evaluate both models on the same file, with the same tokenizer, template and max_seq_len",
        )

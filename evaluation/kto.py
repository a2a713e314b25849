"""Scoring desirable and undesirable answers with the KTO loss."""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.index.unrelated import ReferenceScores, unrelated_in
from tunesmith.evaluation.log_probabilities import log_probabilities, sample_log_probabilities
from tunesmith.evaluation.results import ExampleScores
from tunesmith.modeling.losses.kto import KtoLoss, kto_losses


class KtoScores(NamedTuple):
    """Scores of D answers.

    examples: loss of each row, as of one target; correct if the reward is on its label's side of z. rewards: float64
    [D], beta r, in the order of the rows. is_good: bool [D]. kl: z (modeling/losses/kto.py).
    """

    examples: ExampleScores
    rewards: np.ndarray
    is_good: np.ndarray
    kl: float

    def as_facts(self) -> dict[str, float | None]:
        """Return the event's `kto`. margin: mean reward of the good answers minus that of the bad ones, None if one
        kind is missing; margin_error: its standard error."""
        good, bad = self.rewards[self.is_good], self.rewards[~self.is_good]
        both = len(good) and len(bad)
        spread = min(len(good), len(bad)) > 1
        return {
            "margin": float(good.mean() - bad.mean()) if both else None,
            "margin_error": float(np.sqrt(good.var(ddof=1) / len(good) + bad.var(ddof=1) / len(bad)))
            if spread
            else None,
            "reward_desirable": float(good.mean()) if len(good) else None,
            "reward_undesirable": float(bad.mean()) if len(bad) else None,
            "kl": self.kl,
        }


def score_ratings(loss: KtoLoss, index: TokenIndex, reference: ReferenceScores | None) -> KtoScores:
    """Score the index as one batch: z is the mean over its prompts with the answers of the preceding rows."""
    if reference is None or reference.unrelated is None:
        raise ValueError("kto needs the reference's log-probabilities")
    values, _ = log_probabilities(loss, index)
    unrelated = sample_log_probabilities(loss, index.num_samples, partial(unrelated_in, index))
    mean = float((unrelated - reference.unrelated).mean())
    good = good_answers(index)
    ratios = values - np.asarray(reference.documents, np.float64)
    rated = kto_losses(loss.options, torch.from_numpy(ratios), torch.from_numpy(good), torch.tensor(mean).double())
    rows = np.array([index.document(number).rows[0] for number in range(index.num_documents)], np.int64)
    order = np.argsort(rows, kind="stable")
    examples = ExampleScores(
        row=rows[order],
        loss_sum=rated.loss.numpy()[order],
        num_tokens=np.ones(len(rows), np.int64),
        num_correct=(rated.margin.numpy()[order] > 0).astype(np.int64),
    )
    return KtoScores(examples, loss.options.beta * ratios[order], good[order], max(0.0, mean))


def good_answers(index: TokenIndex) -> np.ndarray:
    """Return the label of each document, bool [D]."""
    return np.array([index.document(number).tokens[-1] == 1 for number in range(index.num_documents)], np.bool_)

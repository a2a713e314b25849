"""ROUGE, BLEU and chrF, computed by the reference libraries rouge_score and sacreBLEU.

BLEU and chrF are functions of statistics summed over examples. sacreBLEU computes the statistics of each example and
the scores of their sums, over all examples and with each example left out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunesmith.evaluation.metrics.generation import missing
from tunesmith.evaluation.metrics.measure import Measured, jackknifed, mean

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, Measured]:
    """rouge1, rouge2, rougeL, rougeLsum: mean F-measures from 0 to 1, without stemming."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing("rouge_score") from error
    scorer = RougeScorer(list(ROUGE), use_stemmer=False)
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {name: mean(np.array([score[name].fmeasure for score in scores])) for name in ROUGE}


def bleu(answers: Sequence[str], references: Sequence[str]) -> tuple[dict[str, Measured], str]:
    """Corpus BLEU from 0 to 100, and the sacreBLEU signature, which identifies the configuration."""
    return _summed("bleu", _sacrebleu().BLEU(), answers, references)


def chrf(answers: Sequence[str], references: Sequence[str]) -> tuple[dict[str, Measured], str]:
    """Corpus chrF from 0 to 100, and its signature."""
    return _summed("chrf", _sacrebleu().CHRF(), answers, references)


def _sacrebleu() -> Any:
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise missing("sacrebleu") from error
    return sacrebleu.metrics


def _summed(
    name: str, metric: Any, answers: Sequence[str], references: Sequence[str]
) -> tuple[dict[str, Measured], str]:
    # sacreBLEU has no public API for per-example statistics; its bootstrap uses these methods (2.6).
    statistics = np.array(metric._extract_corpus_statistics(list(answers), [list(references)]))
    score: Callable[[np.ndarray], float] = lambda sums: metric._compute_score_from_stats(sums.tolist()).score  # noqa: E731
    total = statistics.sum(0)
    left_out = np.array([score(total - own) for own in statistics])
    return {name: jackknifed(score(total), left_out)}, str(metric.get_signature())

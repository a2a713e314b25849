"""ROUGE, BLEU and chrF through the libraries whose numbers papers report: rouge_score and sacreBLEU.

BLEU and chrF are functions of statistics summed over examples; the statistics of each example come from sacreBLEU, and
so does the score of their sums, over all examples and with each example left out.
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
    """bleu, from 0 to 100, over the whole corpus, and sacreBLEU's signature, which says how it was computed."""
    return _summed("bleu", _sacrebleu().BLEU(), answers, references)


def chrf(answers: Sequence[str], references: Sequence[str]) -> tuple[dict[str, Measured], str]:
    """chrf, from 0 to 100, over the whole corpus, and its signature."""
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
    # sacreBLEU has no public name for an example's statistics; its own bootstrap is built on these (2.6).
    statistics = np.array(metric._extract_corpus_statistics(list(answers), [list(references)]))
    score: Callable[[np.ndarray], float] = lambda sums: metric._compute_score_from_stats(sums.tolist()).score  # noqa: E731
    total = statistics.sum(0)
    left_out = np.array([score(total - own) for own in statistics])
    return {name: jackknifed(score(total), left_out)}, str(metric.get_signature())

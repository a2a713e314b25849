"""Metrics of generated answers against references that need no model.

n examples. Words are split at whitespace. Normalized text is lowercased, without punctuation, the articles a, an, the,
and extra whitespace, as in SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250).
"""

import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import InputError
from tunesmith.evaluation.metrics.measure import Measured, jackknifed, mean, ratio

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answers: Sequence[str], references: Sequence[str]) -> dict[str, Measured]:
    """exact_match: identical text; exact_match_normalised: identical after normalization."""
    pairs = list(zip(answers, references, strict=True))
    return {
        "exact_match": mean(np.array([a == r for a, r in pairs])),
        "exact_match_normalised": mean(np.array([normalised(a) == normalised(r) for a, r in pairs])),
    }


def token_f1(answers: Sequence[str], references: Sequence[str]) -> dict[str, Measured]:
    """token_f1: mean F1 of normalized words, as in SQuAD; 1 for two empty texts."""
    return {"token_f1": mean(np.array([_word_f1(a, r) for a, r in zip(answers, references, strict=True)]))}


def length_ratio(answers: Sequence[str], references: Sequence[str]) -> dict[str, Measured]:
    """length_ratio: total words of the answers divided by total words of the references."""
    num_words, expected = (np.array([len(text.split()) for text in texts]) for texts in (answers, references))
    return {"length_ratio": ratio(num_words, expected)}


def distinct(answers: Sequence[str], orders: Sequence[int] = (1, 2)) -> dict[str, Measured]:
    """distinct_n: distinct word n-grams divided by all, over all answers (Li et al. 2016, arXiv:1510.03055)."""
    measured = {}
    for order in orders:
        each = [Counter(_word_grams(text, order)) for text in answers]
        corpus: Counter[tuple[str, ...]] = Counter()
        for grams in each:
            corpus.update(grams)
        total = corpus.total()
        value = len(corpus) / total if total else np.nan
        without = [
            _fraction_without(len(corpus) - sum(corpus[gram] == times for gram, times in grams.items()), total, grams)
            for grams in each
        ]
        measured[f"distinct_{order}"] = jackknifed(value, np.array(without))
    return measured


def stop_rate(stopped: Sequence[bool]) -> dict[str, Measured]:
    """stop_rate: fraction of answers that ended with a stop token or stop string, not at the length limit."""
    return {"stop_rate": mean(np.array(stopped, dtype=np.float64))}


def json_validity(answers: Sequence[str], schema: Path | None = None) -> dict[str, Measured]:
    """valid_json: fraction of answers that are one JSON value; valid_schema: fraction that also match the JSON schema.

    schema: file with a JSON schema; its "$schema" selects the draft. Raises InputError if it is not a JSON schema.
    """
    parsed = [_parse(answer) for answer in answers]
    measured = {"valid_json": mean(np.array([ok for ok, _ in parsed]))}
    if schema is not None:
        check = _validator(schema)
        measured["valid_schema"] = mean(np.array([ok and check.is_valid(value) for ok, value in parsed]))
    return measured


def normalised(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _word_f1(answer: str, reference: str) -> float:
    answer_words, reference_words = normalised(answer).split(), normalised(reference).split()
    if not answer_words or not reference_words:
        return float(answer_words == reference_words)
    shared = (Counter(answer_words) & Counter(reference_words)).total()
    return 2 * shared / (len(answer_words) + len(reference_words))


def _word_grams(text: str, order: int) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return zip(*(words[start:] for start in range(order)), strict=False)


def _fraction_without(unique: int, total: int, removed: Counter[tuple[str, ...]]) -> float:
    remaining = total - removed.total()
    return unique / remaining if remaining else unique


def _parse(text: str) -> tuple[bool, Any]:
    try:
        return True, json.loads(text)
    except (ValueError, RecursionError):
        return False, None


def _validator(path: Path) -> Any:
    try:
        from jsonschema import exceptions, validators
    except ImportError as error:
        raise missing("jsonschema") from error
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        kind = validators.validator_for(schema)
        kind.check_schema(schema)
    except (OSError, ValueError, exceptions.SchemaError) as error:
        raise InputError(
            f"invalid JSON schema: {str(error).splitlines()[0]}",
            where=str(path),
            remedy="pass a file with a valid JSON schema",
        ) from error
    return kind(schema)


def missing(package: str) -> InputError:
    """Return the error for a metric whose package is not installed."""
    return InputError(f"{package} is not installed", remedy="pip install 'tunesmith[metrics]'")

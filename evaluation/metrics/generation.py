"""Generated answers against references: what can be told without a model.

n examples. Words are split at white space. Text that is compared "normalised" is lower-cased, without punctuation, the
articles a, an, the, and surplus white space, as SQuAD does it (Rajpurkar et al. 2016, arXiv:1606.05250).
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
    """exact_match: equal to the last character; exact_match_normalised: equal once normalised."""
    pairs = list(zip(answers, references, strict=True))
    return {
        "exact_match": mean(np.array([a == r for a, r in pairs])),
        "exact_match_normalised": mean(np.array([normalised(a) == normalised(r) for a, r in pairs])),
    }


def token_f1(answers: Sequence[str], references: Sequence[str]) -> dict[str, Measured]:
    """token_f1: the mean overlap of normalised words, SQuAD's F1; two empty texts overlap fully."""
    return {"token_f1": mean(np.array([_word_f1(a, r) for a, r in zip(answers, references, strict=True)]))}


def length_ratio(answers: Sequence[str], references: Sequence[str]) -> dict[str, Measured]:
    """length_ratio: words of all answers over words of all references."""
    words, wanted = (np.array([len(text.split()) for text in texts]) for texts in (answers, references))
    return {"length_ratio": ratio(words, wanted)}


def distinct(answers: Sequence[str], orders: Sequence[int] = (1, 2)) -> dict[str, Measured]:
    """distinct_n: different n-grams of words over all of them, over all answers (Li et al. 2016, arXiv:1510.03055)."""
    found = {}
    for order in orders:
        each = [Counter(_word_grams(text, order)) for text in answers]
        everywhere: Counter[tuple[str, ...]] = Counter()
        for grams in each:
            everywhere.update(grams)
        total = everywhere.total()
        value = len(everywhere) / total if total else np.nan
        without = [
            _share(len(everywhere) - sum(everywhere[gram] == times for gram, times in grams.items()), total, grams)
            for grams in each
        ]
        found[f"distinct_{order}"] = jackknifed(value, np.array(without))
    return found


def stop_rate(stopped: Sequence[bool]) -> dict[str, Measured]:
    """stop_rate: answers that the model ended by itself (a stop token or a stop string), not the limit."""
    return {"stop_rate": mean(np.array(stopped, dtype=np.float64))}


def json_validity(answers: Sequence[str], schema: Path | None = None) -> dict[str, Measured]:
    """valid_json: answers that are one JSON value; valid_schema: of all answers those that also keep the JSON schema.

    schema: a file with a JSON schema; draft by its "$schema". InputError where it is none.
    """
    parsed = [_parse(answer) for answer in answers]
    found = {"valid_json": mean(np.array([ok for ok, _ in parsed]))}
    if schema is not None:
        check = _validator(schema)
        found["valid_schema"] = mean(np.array([ok and check.is_valid(value) for ok, value in parsed]))
    return found


def normalised(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _word_f1(answer: str, reference: str) -> float:
    said, wanted = normalised(answer).split(), normalised(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted))


def _word_grams(text: str, order: int) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return zip(*(words[start:] for start in range(order)), strict=False)


def _share(unique: int, total: int, removed: Counter[tuple[str, ...]]) -> float:
    left = total - removed.total()
    return unique / left if left else unique


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
            f"the JSON schema cannot be used: {str(error).splitlines()[0]}",
            where=str(path),
            remedy="name a file with a JSON schema",
        ) from error
    return kind(schema)


def missing(package: str) -> InputError:
    """The error where a metric's package is not installed."""
    return InputError(f"{package} is not installed", remedy="pip install 'tunesmith[metrics]'")

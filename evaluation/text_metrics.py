"""Metrics of generated answers by the names that users give."""

from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import InputError
from tunesmith.evaluation.job import Answered
from tunesmith.evaluation.metrics.generation import (
    distinct,
    exact_match,
    json_validity,
    length_ratio,
    stop_rate,
    token_f1,
)
from tunesmith.evaluation.metrics.measure import Measured
from tunesmith.evaluation.metrics.overlap import bleu, chrf, rouge

AGAINST_REFERENCES = ("exact_match", "token_f1", "rouge", "bleu", "chrf", "length_ratio")
OF_ANSWERS = ("distinct", "stop_rate")
TEXT_METRICS = (*AGAINST_REFERENCES, *OF_ANSWERS, "json")


def chosen_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Text metrics in their own order. `language` asks for none, `generation` for all but json.

    Raises InputError for a name that is none.
    """
    wanted = set(names) - {"language"}
    if "generation" in wanted:
        wanted = (wanted - {"generation"}) | {*AGAINST_REFERENCES, *OF_ANSWERS}
    if unknown := sorted(wanted - set(TEXT_METRICS)):
        raise InputError(
            f"unknown metric {unknown[0]!r}",
            where="--metrics",
            remedy="choose from: language, generation, " + ", ".join(TEXT_METRICS),
        )
    return tuple(name for name in TEXT_METRICS if name in wanted)


def text_metrics(
    names: Sequence[str], answered: Sequence[Answered], schema: Path | None = None
) -> tuple[dict[str, Measured], dict[str, str]]:
    """(metric -> its number, metric -> how it was computed: sacreBLEU's signature)."""
    answers, references = [one.output for one in answered], [one.reference for one in answered]
    found: dict[str, Measured] = {}
    signatures: dict[str, str] = {}
    for name, measure in (
        ("exact_match", exact_match),
        ("token_f1", token_f1),
        ("rouge", rouge),
        ("length_ratio", length_ratio),
    ):
        if name in names:
            found |= measure(answers, references)
    for name, measure in (("bleu", bleu), ("chrf", chrf)):
        if name in names:
            numbers, signatures[name] = measure(answers, references)
            found |= numbers
    if "distinct" in names:
        found |= distinct(answers)
    if "stop_rate" in names:
        found |= stop_rate([one.stopped for one in answered])
    if "json" in names:
        found |= json_validity(answers, schema)
    return found, signatures

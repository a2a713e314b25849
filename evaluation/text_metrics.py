"""Metrics of generated answers, by user-facing name."""

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
    """Return the requested text metrics in canonical order. `language` adds none, `generation` all except json.

    Raises InputError for an unknown name.
    """
    requested = set(names) - {"language"}
    if "generation" in requested:
        requested = (requested - {"generation"}) | {*AGAINST_REFERENCES, *OF_ANSWERS}
    if unknown := sorted(requested - set(TEXT_METRICS)):
        raise InputError(
            f"unknown metric {unknown[0]!r}",
            where="--metrics",
            remedy="choose from: language, generation, " + ", ".join(TEXT_METRICS),
        )
    return tuple(name for name in TEXT_METRICS if name in requested)


def text_metrics(
    names: Sequence[str], answered: Sequence[Answered], schema: Path | None = None
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Return (metric -> measured value, metric -> sacreBLEU signature)."""
    answers, references = [answer.output for answer in answered], [answer.reference for answer in answered]
    measured: dict[str, Measured] = {}
    signatures: dict[str, str] = {}
    for name, measure in (
        ("exact_match", exact_match),
        ("token_f1", token_f1),
        ("rouge", rouge),
        ("length_ratio", length_ratio),
    ):
        if name in names:
            measured |= measure(answers, references)
    for name, measure in (("bleu", bleu), ("chrf", chrf)):
        if name in names:
            numbers, signatures[name] = measure(answers, references)
            measured |= numbers
    if "distinct" in names:
        measured |= distinct(answers)
    if "stop_rate" in names:
        measured |= stop_rate([answer.stopped for answer in answered])
    if "json" in names:
        measured |= json_validity(answers, schema)
    return measured, signatures

"""What an evaluation measured, in the words of its task: names, values, and whether more is better."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunesmith.report.wording import decimal, percent, significant
from tunesmith.rundir.events import Scores


@dataclass(frozen=True)
class Measure:
    """key: of the paired comparison, where the rows' own scores give one ("loss", "token_accuracy"), else empty."""

    name: str
    value: Callable[[Scores], Any]
    form: Callable[[Any], str]
    good: int
    """1: more is better; -1: less is."""
    key: str = ""


def measures_of(scores: Scores) -> list[Measure]:
    """The measures of the task of the scores, those that matter most first; the loss is always one of them."""
    if scores.classification is not None:
        return [*_of_classes(scores.classification), Measure("loss (nats)", _loss, decimal, -1, "loss")]
    if scores.preference is not None:
        return [
            Measure("margin", lambda s: (s.preference or {}).get("margin"), decimal, 1),
            Measure("better answer preferred", _token_accuracy, percent, 1, "token_accuracy"),
            Measure("loss", _loss, decimal, -1, "loss"),
        ]
    return [
        Measure("loss (nats a token)", _loss, decimal, -1, "loss"),
        Measure("perplexity", lambda s: s.perplexity, lambda value: significant(value, 4), -1),
        Measure("tokens foreseen", _token_accuracy, percent, 1, "token_accuracy"),
    ]


def in_one_line(scores: Scores) -> str:
    """`validation: macro-F1 0.91, accuracy 92 %, loss (nats) 0.31`."""
    return "validation: " + ", ".join(f"{m.name} {m.form(m.value(scores))}" for m in measures_of(scores)[:5])


def _of_classes(found: dict[str, Any]) -> list[Measure]:
    metrics = found.get("metrics", {})
    wanted = [
        ("f1_macro", "macro-F1", decimal, 1),
        ("accuracy", "accuracy", percent, 1),
        ("subset_accuracy", "all labels right", percent, 1),
        ("label_accuracy", "labels right", percent, 1),
        ("balanced_accuracy", "balanced accuracy", percent, 1),
        ("mcc", "MCC", decimal, 1),
        ("auroc", "AUROC", decimal, 1),
        ("auprc", "AUPRC", decimal, 1),
        ("brier", "Brier score", decimal, -1),
        ("calibration_error", "calibration error", decimal, -1),
    ]
    return [
        Measure(name, lambda s, key=key: (s.classification or {}).get("metrics", {}).get(key), form, good)
        for key, name, form, good in wanted
        if key in metrics
    ]


def _loss(scores: Scores) -> float | None:
    return scores.loss


def _token_accuracy(scores: Scores) -> float | None:
    return scores.token_accuracy

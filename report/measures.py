"""What an evaluation measured, in the words of its task: names, values, and whether more is better."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunesmith.report.wording import decimal, percent, significant

Event = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """key: of the paired comparison, where the rows' own scores give one ("loss", "token_accuracy"), else empty."""

    name: str
    value: Callable[[Event], Any]
    form: Callable[[Any], str]
    good: int
    """1: more is better; -1: less is."""
    key: str = ""


def measures_of(event: Event) -> list[Measure]:
    """The measures of an event's task, those that matter most first; the loss is always one of them."""
    if "classification" in event:
        return [*_of_classes(event["classification"]), Measure("loss (nats)", _get("loss"), decimal, -1, "loss")]
    if "preference" in event:
        return [
            Measure("margin", lambda e: e.get("preference", {}).get("margin"), decimal, 1),
            Measure("better answer preferred", _get("token_accuracy"), percent, 1, "token_accuracy"),
            Measure("loss", _get("loss"), decimal, -1, "loss"),
        ]
    return [
        Measure("loss (nats a token)", _get("loss"), decimal, -1, "loss"),
        Measure("perplexity", _get("perplexity"), lambda value: significant(value, 4), -1),
        Measure("tokens foreseen", _get("token_accuracy"), percent, 1, "token_accuracy"),
    ]


def in_one_line(event: Event) -> str:
    """`validation: macro-F1 0.91, accuracy 92 %, loss (nats) 0.31`."""
    return "validation: " + ", ".join(f"{m.name} {m.form(m.value(event))}" for m in measures_of(event)[:5])


def _of_classes(found: Event) -> list[Measure]:
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
        Measure(name, lambda e, key=key: e.get("classification", {}).get("metrics", {}).get(key), form, good)
        for key, name, form, good in wanted
        if key in metrics
    ]


def _get(key: str) -> Callable[[Event], Any]:
    return lambda event: event.get(key)

"""Labels of a classification task: read from rows and mapped to class indices. Label names are strings."""

from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.configs.recipe import Classification
from tunesmith.data.refusal import Refusal, keys_of, name_of
from tunesmith.errors import InputError

MAX_LABELS = 10_000
"""With more distinct labels, the column most likely contains free text."""


def names_in(value: Any, settings: Classification) -> list[str]:
    """Return the names of a row's labels, in the row's order. value: the object of a line. Raises Refusal."""
    if type(value) is not dict:
        raise Refusal("not_an_object", f"the row is {name_of(value)}, not an object", 'write each row as {"key": ...}')
    key = settings.label_column
    if value.get(key) is None:
        remedy = f"set classification.label_column to the label's key; {keys_of(value)}"
        raise Refusal("missing_key", f'"{key}" is missing', remedy)
    label = value[key]
    if settings.kind != "multi_label":
        return [_name(label, key)]
    if not isinstance(label, list):
        raise Refusal(
            "invalid_label", f'"{key}" is {name_of(label)}, not a list of labels', 'write it as ["...", "..."], or []'
        )
    names = [_name(item, key) for item in label]
    if len(set(names)) < len(names):
        raise Refusal("invalid_label", f'"{key}" contains a label twice', "list each label once")
    return names


def targets_of(
    names: Sequence[str], settings: Classification, labels: Sequence[str], withheld: bool = False
) -> list[int]:
    """Return a row's targets: the class index; for a binary task 1 for the second label, else 0; for multi_label a 0 or
    1 for each label. Raises Refusal for a name that is not in `labels`. withheld: the message does not name it."""
    for name in names:
        if name not in labels:
            shown = "the label" if withheld else f"the label {name!r}"
            raise Refusal(
                "unknown_label",
                f"{shown} is not a label of the training rows",
                "correct it, or add it to classification.labels",
            )
    if settings.kind == "multi_label":
        return [int(label in names) for label in labels]
    return [labels.index(names[0])]


def find_labels(rows: Iterable[Any], settings: Classification, where: str, withheld: bool = False) -> list[str]:
    """Return the label names by class index: from the recipe, or else the labels of the rows, sorted.

    Rows that cannot be read are skipped; they are rejected later, with their place. where: the files, for errors.
    withheld: error messages do not name labels (data.deidentify).
    Raises InputError if there are too few or too many labels, or not two for a binary task.
    """
    if settings.labels is not None:
        labels = list(settings.labels)
        if len(set(labels)) < len(labels):
            raise InputError("duplicate label", where="key classification.labels", remedy="list each label once")
    else:
        labels = sorted(_names_of(rows, settings, where), key=_sort_key)
    listing = "" if withheld else f": {_shown(labels)}"
    if settings.kind == "binary" and len(labels) != 2:
        raise InputError(
            f"a binary classification requires two labels, not {len(labels)}{listing}",
            where=where if settings.labels is None else "key classification.labels",
            remedy="fix the rows, or set classification.kind to single_label or multi_label",
        )
    minimum = 1 if settings.kind == "multi_label" else 2
    if len(labels) < minimum:
        raise InputError(
            f"too few labels to classify: {len(labels)}, and the minimum is {minimum}",
            where=where,
            remedy="set classification.label_column to the label's key; every label needs at least one row",
        )
    return labels


def check_weights(settings: Classification, labels: Sequence[str], withheld: bool = False) -> None:
    """Raise InputError if the number of weights differs from the number of weighted labels. withheld: as for
    `find_labels`."""
    weighted = labels[1:] if settings.kind == "binary" else labels
    if isinstance(settings.class_weights, list) and len(settings.class_weights) != len(weighted):
        raise InputError(
            f"{len(settings.class_weights)} weights are given for {len(weighted)} labels",
            where="key classification.class_weights",
            remedy="give one weight per label" + ("" if withheld else f": {_shown(weighted)}"),
        )


def _names_of(rows: Iterable[Any], settings: Classification, where: str) -> set[str]:
    names: set[str] = set()
    for value in rows:
        try:
            names.update(names_in(value, settings))
        except Refusal:
            continue
        if len(names) > MAX_LABELS:
            raise InputError(
                f'the rows have more than {MAX_LABELS:,} different values of "{settings.label_column}"',
                where=where,
                remedy="set classification.label_column to the label's key; free text is not a label",
            )
    return names


def _name(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return value.strip()
    what = "empty" if isinstance(value, str) else f"{name_of(value)}, not a label"
    raise Refusal("invalid_label", f'"{key}" is {what}', "write a string, an integer or a boolean")


def _sort_key(name: str) -> tuple[int, int, str]:
    """Sort integers numerically, before all other names."""
    return (0, int(name), name) if name.removeprefix("-").isdecimal() else (1, 0, name)


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "") if labels else "none"

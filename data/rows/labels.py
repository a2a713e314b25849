"""Labels of a classification task: read from rows and mapped to class indices. Label names are strings."""

from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.configs.sections.objectives import Classification
from tunesmith.data.named_label import NamedLabel
from tunesmith.data.readers.cells import parse_json
from tunesmith.data.refusal import Refusal, keys_of, name_of
from tunesmith.errors import InputError

_LIST_FORM = 'write it as ["...", "..."], with double quotes, or [] for no label'
MAX_LABELS = 10_000
"""With more distinct labels, the column most likely contains free text."""


def names_in(value: Any, settings: Classification, labels: Sequence[str] | None = None) -> list[str]:
    """Return the names of a row's labels, in the row's order. value: the object of a line. labels: the known names;
    a number of a ClassLabel column is one of them if its name is not. Raises Refusal."""
    return [name for name, _ in _numbered(value, settings, labels)]


def _numbered(value: Any, settings: Classification, labels: Sequence[str] | None) -> list[tuple[str, int | None]]:
    """Return names of labels with their numbers in a ClassLabel column, None for other labels."""
    if type(value) is not dict:
        raise Refusal("not_an_object", f"the row is {name_of(value)}, not an object", 'write each row as {"key": ...}')
    key = settings.label_column
    if value.get(key) is None:
        remedy = f"set classification.label_column to the label's key; {keys_of(value)}"
        raise Refusal("missing_key", f'"{key}" is missing', remedy)
    label = value[key]
    if settings.kind != "multi_label":
        return [_name(label, key, labels)]
    if isinstance(label, str):
        label = _listed(label, key)
    if not isinstance(label, list):
        raise Refusal("invalid_label", f'"{key}" is {name_of(label)}, not a list of labels', _LIST_FORM)
    names = [_name(item, key, labels) for item in label]
    if len({name for name, _ in names}) < len(names):
        raise Refusal("invalid_label", f'"{key}" contains a label twice', "list each label once")
    return names


def _listed(text: str, key: str) -> Any:
    """Parse the labels of a CSV cell, a JSON list."""
    try:
        return parse_json(text)
    except ValueError as error:
        raise Refusal("invalid_label", f'"{key}" is a string, not a JSON list of labels', _LIST_FORM) from error


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


def names_of_targets(targets: Sequence[int], settings: Classification, labels: Sequence[str]) -> list[str]:
    """Return the names of a row's labels: the inverse of `targets_of`."""
    if settings.kind == "multi_label":
        return [label for label, target in zip(labels, targets, strict=True) if target]
    return [labels[target] for target in targets]


def find_labels(rows: Iterable[Any], settings: Classification, where: str, withheld: bool = False) -> list[str]:
    """Return the label names by class index: from the recipe, or else the labels of the rows, sorted; names of
    ClassLabel columns in the order of their numbers.

    Rows that cannot be read are skipped; they are rejected later, with their place. where: the files, for errors.
    withheld: error messages do not name labels (data.deidentify).
    Raises InputError if there are too few or too many labels, or not two for a binary task.
    """
    refusal: Refusal | None = None
    if settings.labels is not None:
        labels = list(settings.labels)
        if len(set(labels)) < len(labels):
            raise InputError("duplicate label", where="key classification.labels", remedy="list each label once")
    else:
        numbers, refusal = _labels_of(rows, settings, where)
        in_order = bool(numbers) and None not in numbers.values()
        labels = sorted(numbers, key=(lambda name: (0, numbers[name] or 0, name)) if in_order else _sort_key)
    listing = "" if withheld else f": {_shown(labels)}"
    unread = "" if refusal is None else f"; the first row without a label: {refusal.reason}"
    invalid = refusal.remedy if refusal is not None and refusal.code == "invalid_label" else None
    if settings.kind == "binary" and len(labels) != 2:
        raise InputError(
            f"a binary classification requires two labels, not {len(labels)}{listing}{unread}",
            where=where if settings.labels is None else "key classification.labels",
            remedy=invalid or "fix the rows, or set classification.kind to single_label or multi_label",
        )
    minimum = 1 if settings.kind == "multi_label" else 2
    if len(labels) < minimum:
        remedy = "set classification.label_column to the label's key; every label needs at least one row"
        raise InputError(
            f"too few labels to classify: {len(labels)}, and the minimum is {minimum}{unread}",
            where=where,
            remedy=invalid or remedy,
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


def _labels_of(
    rows: Iterable[Any], settings: Classification, where: str
) -> tuple[dict[str, int | None], Refusal | None]:
    """Return the labels of the rows with their numbers in ClassLabel columns, and why the first unreadable row has
    none."""
    names: dict[str, int | None] = {}
    first: Refusal | None = None
    for value in rows:
        try:
            names.update(_numbered(value, settings, None))
        except Refusal as refusal:
            first = first or refusal
            continue
        if len(names) > MAX_LABELS:
            raise InputError(
                f'the rows have more than {MAX_LABELS:,} different values of "{settings.label_column}"',
                where=where,
                remedy="set classification.label_column to the label's key; free text is not a label",
            )
    return names, first


def _name(value: Any, key: str, labels: Sequence[str] | None) -> tuple[str, int | None]:
    if isinstance(value, NamedLabel):
        by_number = labels is not None and value.name not in labels and str(int(value)) in labels
        return (str(int(value)), None) if by_number else (value.name, int(value))
    return _text_of(value, key), None


def _text_of(value: Any, key: str) -> str:
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

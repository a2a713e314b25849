"""Labels of a classification: read from rows, found in files, numbered. A name is a text; numbers become one."""

from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.configs.recipe import Classification
from tunesmith.data.refusal import Refusal, keys_of, name_of
from tunesmith.errors import InputError

MOST_LABELS = 10_000
"""More different labels than this are free text in the label's place."""


def names_in(value: Any, settings: Classification) -> list[str]:
    """The names of a row's labels, as the row says them. value: one line's object. Raises Refusal."""
    if type(value) is not dict:
        raise Refusal("not_an_object", f"the row is {name_of(value)}, not an object", 'write each row as {"key": ...}')
    key = settings.label_column
    if value.get(key) is None:
        remedy = f"name the label's key as classification.label_column; {keys_of(value)}"
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
        raise Refusal("invalid_label", f'"{key}" names a label twice', "name each label once")
    return names


def targets_of(
    names: Sequence[str], settings: Classification, labels: Sequence[str], withheld: bool = False
) -> list[int]:
    """What a row teaches: the label's number; for a binary task 1 where it is the second label; for multi_label a 0 or
    1 for each label. Raises Refusal for a name that is not among `labels`. withheld: it does not say which."""
    for name in names:
        if name not in labels:
            shown = "the label" if withheld else f"the label {name!r}"
            raise Refusal(
                "unknown_label",
                f"{shown} is none of those of the training rows",
                "correct it, or list it under classification.labels",
            )
    if settings.kind == "multi_label":
        return [int(label in names) for label in labels]
    return [labels.index(names[0])]


def find_labels(rows: Iterable[Any], settings: Classification, where: str, withheld: bool = False) -> list[str]:
    """The labels in the order of their numbers: as the recipe says, or as found in the rows, sorted.

    Rows that cannot be read are passed over: they are refused later, with their place. where: the files, for errors.
    withheld: names that were found are not told (data.deidentify).
    Raises InputError where they are too few, too many, or not two for a binary task.
    """
    if settings.labels is not None:
        labels = list(settings.labels)
        if len(set(labels)) < len(labels):
            raise InputError("a label stands twice", where="key classification.labels", remedy="name each label once")
    else:
        labels = sorted(_names_of(rows, settings, where), key=_place)
    named = "" if withheld else f": {_shown(labels)}"
    if settings.kind == "binary" and len(labels) != 2:
        raise InputError(
            f"a binary classification has two labels, and there are {len(labels)}{named}",
            where=where if settings.labels is None else "key classification.labels",
            remedy="mend the rows, or set classification.kind to single_label or multi_label",
        )
    if len(labels) < (1 if settings.kind == "multi_label" else 2):
        raise InputError(
            f"the rows have {len(labels)} different labels: there is nothing to tell apart",
            where=where,
            remedy="name the label's key as classification.label_column; every label needs a row of its own",
        )
    return labels


def check_weights(settings: Classification, labels: Sequence[str], withheld: bool = False) -> None:
    """Raises InputError where the recipe gives another number of weights than there are labels to weigh. withheld: as
    for `find_labels`."""
    weighed = labels[1:] if settings.kind == "binary" else labels
    if isinstance(settings.class_weights, list) and len(settings.class_weights) != len(weighed):
        raise InputError(
            f"{len(settings.class_weights)} weights are given for {len(weighed)} labels",
            where="key classification.class_weights",
            remedy="give one for each" + ("" if withheld else f": {_shown(weighed)}"),
        )


def _names_of(rows: Iterable[Any], settings: Classification, where: str) -> set[str]:
    names: set[str] = set()
    for value in rows:
        try:
            names.update(names_in(value, settings))
        except Refusal:
            continue
        if len(names) > MOST_LABELS:
            raise InputError(
                f'the rows have more than {MOST_LABELS:,} different values under "{settings.label_column}"',
                where=where,
                remedy="name the label's key as classification.label_column; a text is no label",
            )
    return names


def _name(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return value.strip()
    what = "empty" if isinstance(value, str) else f"{name_of(value)}, no label"
    raise Refusal("invalid_label", f'"{key}" is {what}', "write a text, a whole number, true or false")


def _place(name: str) -> tuple[int, int, str]:
    """Numbers in their order, before texts in theirs."""
    return (0, int(name), name) if name.removeprefix("-").isdecimal() else (1, 0, name)


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "") if labels else "none"

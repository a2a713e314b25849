"""An integer label with a name: ClassLabel columns of `datasets`."""


class NamedLabel(int):
    """A number that a table's schema names. It counts as its name where a label is read, and as a number elsewhere."""

    name: str

    def __new__(cls, number: int, name: str) -> "NamedLabel":
        label = super().__new__(cls, number)
        label.name = name
        return label

"""An encoder of rows whose keys have other names (`data.columns`)."""

from collections.abc import Iterable, Mapping
from typing import Any

from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.outcomes import Prepared
from tunesmith.data.rows.shapes.columns import renamed


class RenamingEncoder:
    """Wrapper of an encoder that renames the keys of rows before. columns: key of the rows by meaning."""

    def __init__(self, inner: RowEncoder, columns: Mapping[str, str]):
        self.inner, self.columns = inner, columns
        self.tokenizer, self.spec = inner.tokenizer, inner.spec

    def encode(self, values: Iterable[Any]) -> list[Prepared]:
        """Encode rows like the inner encoder."""
        return self.inner.encode([renamed(value, self.columns) for value in values])

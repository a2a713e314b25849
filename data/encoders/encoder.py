"""The interface of encoders; `by_task` lists them all."""

from collections.abc import Iterable
from typing import Any, Protocol

from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.outcomes import Prepared
from tunesmith.data.tokenization.tokenizer import Tokenizer


class RowEncoder(Protocol):
    """Converter of rows to documents."""

    tokenizer: Tokenizer
    spec: EncodingSpec

    def encode(self, values: Iterable[Any]) -> list[Prepared]: ...

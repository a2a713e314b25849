"""What preparing needs of an encoder; `by_task` names them all."""

from collections.abc import Iterable
from typing import Any, Protocol

from tunesmith.data.encoders.spec import EncodingSpec
from tunesmith.data.outcomes import Prepared
from tunesmith.data.tokenization.tokenizer import Tokenizer


class RowEncoder(Protocol):
    """Turns rows into documents."""

    tokenizer: Tokenizer
    spec: EncodingSpec

    def encode(self, values: Iterable[Any]) -> list[Prepared]: ...

"""What preparing needs of an encoder; `by_task` names them all."""

from collections.abc import Iterable
from typing import Any, Protocol

from tunesmith.data.outcomes import Prepared
from tunesmith.data.tokenization.tokenizer import Tokenizer

Options = dict[str, Any]
"""What shapes documents beside tokenizer, task, max_seq_len and too_long; JSON throughout. Empty for chat and text."""


class RowEncoder(Protocol):
    """What preparing needs of an encoder. withholds: rows must not be shown as they stood in their file."""

    tokenizer: Tokenizer
    task: str
    max_seq_len: int
    too_long: str
    options: Options
    withholds: bool

    def encode(self, values: Iterable[Any]) -> list[Prepared]: ...

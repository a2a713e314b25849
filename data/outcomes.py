"""The outcome of a row, and the documents created from it."""

from dataclasses import dataclass, field

from tunesmith.data.refusal import Refusal, RefusalCode

KEPT, TRUNCATED, MASKED, DROPPED, REJECTED, DUPLICATE, UNSELECTED = (
    "kept",
    "truncated",
    "masked",
    "dropped",
    "rejected",
    "duplicate",
    "unselected",
)
OUTCOMES = (KEPT, TRUNCATED, MASKED, DROPPED, REJECTED, DUPLICATE, UNSELECTED)
"""Their positions are stored in prepared shards: add new ones at the end."""


Ranges = list[tuple[int, int]]  # half-open, ascending


@dataclass(slots=True)
class Document:
    """supervised: ranges of target tokens, the loss mask."""

    tokens: list[int]
    supervised: Ranges

    def supervised_tokens(self) -> int:
        """Number of target tokens. The first token is never a target, since no token precedes it."""
        return sum(stop - max(start, 1) for start, stop in self.supervised if stop > 1)


@dataclass(slots=True)
class Prepared:
    """The outcome of a row. documents: empty if it is dropped or rejected. lost_*: tokens lost by truncation. key: 16
    bytes, equal for equal content, empty if the row could not be read. reason, remedy: why it is not kept unchanged.
    replaced: number of de-identified places by kind. omitted: number of values that the chat template does not show,
    by kind. code: the refusal's code, if it is rejected. num_special: special tokens that the row contains as text.
    inserted: number of texts that the template inserts into trained answers, which are not trained, by text."""

    outcome: str
    documents: list[Document] = field(default_factory=list)
    key: bytes = b""
    lost_tokens: int = 0
    lost_supervised: int = 0
    reason: str = ""
    remedy: str = ""
    replaced: dict[str, int] = field(default_factory=dict)
    omitted: dict[str, int] = field(default_factory=dict)
    code: RefusalCode | None = None
    num_special: int = 0
    inserted: dict[str, int] = field(default_factory=dict)


def rejected(refusal: Refusal, key: bytes = b"") -> Prepared:
    return Prepared(REJECTED, [], key, reason=refusal.reason, remedy=refusal.remedy, code=refusal.code)

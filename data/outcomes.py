"""The outcome of a row, and the documents that are made of it."""

from dataclasses import dataclass, field

from tunesmith.data.refusal import Refusal, RefusalCode

KEPT, TRUNCATED, MASKED, DROPPED, REJECTED, DUPLICATE = (
    "kept",
    "truncated",
    "masked",
    "dropped",
    "rejected",
    "duplicate",
)
OUTCOMES = (KEPT, TRUNCATED, MASKED, DROPPED, REJECTED, DUPLICATE)


Ranges = list[tuple[int, int]]  # half-open, ascending


@dataclass(slots=True)
class Document:
    """supervised: which tokens are targets, the loss mask of training."""

    tokens: list[int]
    supervised: Ranges

    def supervised_tokens(self) -> int:
        """The first token is never a target: nothing stands before it."""
        return sum(stop - max(start, 1) for start, stop in self.supervised if stop > 1)


@dataclass(slots=True)
class Prepared:
    """What became of a row. documents: none where it is dropped or rejected. lost_*: what a cut cost. key: 16 bytes,
    equal for equal content, empty where the row could not be read. reason, remedy: why it is not whole.
    replaced: places by kind that were replaced to de-identify it. code: of the refusal, where it is rejected."""

    outcome: str
    documents: list[Document] = field(default_factory=list)
    key: bytes = b""
    lost_tokens: int = 0
    lost_supervised: int = 0
    reason: str = ""
    remedy: str = ""
    replaced: dict[str, int] = field(default_factory=dict)
    code: RefusalCode | None = None


def rejected(refusal: Refusal, key: bytes = b"") -> Prepared:
    return Prepared(REJECTED, [], key, reason=refusal.reason, remedy=refusal.remedy, code=refusal.code)

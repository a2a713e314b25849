"""Blocks of queries of a document: attention whose scores are in memory only for one block at a time.

K key heads, G query heads per key head, H = K G, t tokens of a document, b queries of a block, n keys of a block, D
head size.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from tunesmith.kernels.language import equal_parts


class Block(NamedTuple):
    """Queries [first, last) of a document, and the keys [start, end) that any of them attends to."""

    first: int
    last: int
    start: int
    end: int


def blocks_of(length: int, limit: int, causal: bool, window: int | None) -> Iterator[Block]:
    """Yield the blocks of a document of `length` tokens, of equal size and at most `limit` queries."""
    for block in equal_parts(length, limit):
        start = 0 if window is None else max(0, block.start - window + 1)
        yield Block(block.start, block.stop, start, block.stop if causal else length)


def rows_of_block(x_HtD: Tensor, block: Block, num_key_heads: int) -> Tensor:
    """Return the rows of a block, [K, G b, D]: of all query heads of a key head."""
    return x_HtD[:, block.first : block.last].reshape(num_key_heads, -1, x_HtD.shape[-1])


def put_rows(x_HtD: Tensor, block: Block, rows: Tensor) -> None:
    """Write the rows of a block, [K, G b, D], to their places."""
    target = x_HtD[:, block.first : block.last]
    target.copy_(rows.view(target.shape))

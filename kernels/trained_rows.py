"""Rows of a frozen head that are trained alone, such as those of new tokens.

K trained rows, V vocabulary, H hidden.
"""

from typing import NamedTuple

from torch import Tensor


class TrainedRows(NamedTuple):
    """Rows of a frozen head that are trained alone, such as those of new tokens; they replace the head's."""

    rows_K: Tensor
    """int64 [K]: their numbers, each once."""
    values_KH: Tensor
    """[K, H], floating."""

    def placed_in(self, weight_VH: Tensor) -> Tensor:
        """Return a copy of the head with these rows, [V, H] in its dtype, without gradient."""
        return weight_VH.detach().index_copy(0, self.rows_K, self.values_KH.detach().to(weight_VH.dtype))


def with_rows(weight_VH: Tensor, trained: TrainedRows | None) -> Tensor:
    """Return the head with its trained rows, or the head itself if it has none."""
    return weight_VH if trained is None else trained.placed_in(weight_VH)

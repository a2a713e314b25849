"""Arrays larger than memory: records are appended to bucket files and read back one bucket at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np


class Spill:
    """Records in `num_buckets` files of a directory. Memory: the records of one append, or one bucket."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype, num_buckets: int):
        self.dtype = dtype
        self._paths = [directory / f"{name}-{number}" for number in range(num_buckets)]
        for path in self._paths:
            path.touch()

    def append(self, records: np.ndarray, buckets: np.ndarray) -> None:
        """Append records. records: [N] of the dtype. buckets: int [N]; the order within a bucket is preserved."""
        order = np.argsort(buckets, kind="stable")
        ends = np.cumsum(np.bincount(buckets, minlength=len(self._paths)))
        for path, part in zip(self._paths, np.split(records[order], ends[:-1]), strict=True):
            if len(part):
                with open(path, "ab") as file:
                    part.tofile(file)

    def __iter__(self) -> Iterator[np.ndarray]:
        for path in self._paths:
            yield np.fromfile(path, self.dtype)

"""A work queue in a directory, for any number of processes on any number of machines.

A batch is claimed by a lock on one byte of a file, which the kernel releases when the process ends for any reason. It
is done when its results file exists, which is written atomically. Each batch is therefore in the results exactly once,
the batch of a lost worker is processed by another one, and a killed evaluation continues with the remaining batches.
The locks are POSIX record locks (fcntl), which also work over NFS; they distinguish processes, not threads.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.faults import fault_point

POLL_S = 0.1
"""Polling interval for batches that other processes hold."""


class Queue:
    """The batches 0 to num_batches - 1 of a directory, in that order."""

    def __init__(self, directory: Path, num_batches: int):
        self.directory, self.num_batches = directory, num_batches
        self.results = directory / "results"
        # Not all parents: a run directory that was deleted is not created again.
        for folder in (directory.parent, directory, self.results):
            folder.mkdir(exist_ok=True)
        self._claims = directory / "claims.jsonl"

    def pull(self) -> Iterator[int]:
        """Yield batches that are not done, each claimed until the next one is requested.

        Returns when all batches are done, also by other processes: it waits for their last batches and processes them
        if they are lost.
        """
        fd = os.open(self.directory / "queue.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            open_batches = list(range(self.num_batches))
            while open_batches:
                held_by_others = []
                for number in open_batches:
                    if self.is_done(number):
                        continue
                    if not _try_lock(fd, number):
                        held_by_others.append(number)
                        continue
                    if not self.is_done(number):  # it may have been completed before the lock was acquired
                        self._record_claim(number)
                        yield number
                    fcntl.lockf(fd, fcntl.LOCK_UN, 1, number)
                open_batches = held_by_others
                if open_batches:
                    time.sleep(POLL_S)
        finally:
            os.close(fd)

    def finish(self, number: int, records: Sequence[dict[str, Any]]) -> None:
        """Store the results of a batch as JSON Lines, durably and atomically."""
        fault_point("evaluation.scored")
        write_text(self._result(number), "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        fault_point("evaluation.stored")

    def is_done(self, number: int) -> bool:
        return self._result(number).is_file()

    def num_done(self) -> int:
        return sum(1 for entry in os.scandir(self.results) if entry.name.startswith("batch-"))

    def records_of(self, number: int) -> Iterator[dict[str, Any]]:
        """Yield the results of a batch; nothing if it is not done."""
        if self.is_done(number):
            with open(self._result(number), encoding="utf-8") as file:
                yield from map(json.loads, file)

    def _result(self, number: int) -> Path:
        return self.results / f"batch-{number:06d}.jsonl"

    def _record_claim(self, number: int) -> None:
        """Append one line per claim: batch, process and time. Short appends are atomic (O_APPEND)."""
        line = {"batch": number, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        with open(self._claims, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _try_lock(fd: int, number: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except (BlockingIOError, PermissionError):
        return False
    return True

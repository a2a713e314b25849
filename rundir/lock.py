"""Locks of a run directory: a second process on the same directory is rejected."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.errors import InputError
from tunesmith.os_errors import remedy_for
from tunesmith.rundir.paths import RunDir


@contextmanager
def run_lock(run: RunDir) -> Iterator[int]:
    """Hold the run's lock; the kernel releases it when the holder exits, for whatever reason.

    Yields the file descriptor: a child process that inherits it keeps the lock if the holder is killed.
    Raises InputError if another process holds the lock, or if the directory cannot be created or written.
    """
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        fd = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(
            f"the run directory cannot be locked: {error.strerror}",
            where=str(error.filename or run.root),
            remedy=remedy_for(error, "choose another directory with --run-dir, or make this one writable"),
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            holder = os.pread(fd, 64, 0).decode("ascii", "replace").strip()
            raise InputError(
                f"another process is working on this run{f' (pid {holder})' if holder else ''}",
                where=str(run.root),
                remedy=f"wait for it (`tunesmith status {run.root} --follow`), stop it, or choose another --run-dir",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def worker_lock(run: RunDir) -> Iterator[int]:
    """Shared lock, held by every worker that a cluster starts: see `wait_until_free`.

    Yields the file descriptor, for the worker to inherit.
    """
    fd = os.open(run.workers_lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield fd
    finally:
        os.close(fd)


def is_free(run: RunDir) -> bool:
    """Whether neither a launcher nor a worker holds a lock of the run: all of its processes have exited."""
    for path in (run.lock, run.workers_lock):
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
    return True


def wait_until_free(run: RunDir, timeout_s: float) -> bool:
    """Wait until no worker holds `worker_lock`; False on timeout. An unreachable machine can hold it forever, so the
    caller then relies on the fence."""
    fd = os.open(run.workers_lock, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
            time.sleep(0.1)
    finally:
        os.close(fd)

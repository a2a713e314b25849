"""Files and uploads whose time is over, and bytes that a killed server left: gone, row and bytes."""

import logging
import time

from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.store.files import lock_file
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import File

ORPHAN_S = 24 * 3600.0
"""Bytes that nothing names are deleted once they are this old: an upload may last that long."""
_log = logging.getLogger("tunesmith.serving")


def delete_file(store: Store, blobs: Blobs, file: File) -> str | None:
    """Delete a file, unless a job that has not ended needs it: then its id is returned.

    The row first: what is left by a crash in between are bytes that `sweep` finds.
    """
    with store.begin() as session:
        lock_file(session, file.id)
        if jobs := store.jobs.naming_file(file.id, session):
            return jobs[0]
        store.files.delete(file.id, session)
    blobs.delete(file.blob)
    return None


def sweep(store: Store, blobs: Blobs, now: float | None = None, orphan_s: float = ORPHAN_S) -> int:
    """Returns how many things went. A file that an unfinished job needs keeps its bytes until the job has ended."""
    now = time.time() if now is None else now
    gone = 0
    for file in store.files.expired(now):
        gone += delete_file(store, blobs, file) is None
    for upload in store.uploads.expired(now):
        if store.uploads.finish(upload.id, "expired"):
            for part in store.uploads.parts(upload.id):
                blobs.delete(part.blob)
            gone += 1
    orphans = blobs.sweep(store.files.blobs() | store.uploads.part_blobs(), orphan_s)
    if gone or orphans:
        _log.info("expired: %d; bytes that nothing named: %d", gone, len(orphans))
    return gone + len(orphans)

"""Deletion of expired files and uploads, and of blobs that a killed server left behind."""

import logging
import time

from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.store.files import lock_file
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import File

ORPHAN_S = 24 * 3600.0
"""Unreferenced blobs are deleted after this time, which exceeds the duration of any upload."""
_log = logging.getLogger("tunesmith.serving")


def delete_file(store: Store, blobs: Blobs, file: File) -> str | None:
    """Delete a file, unless an unfinished job needs it: then the id of that job is returned.

    The row is deleted first: a crash in between leaves a blob that `sweep` deletes later.
    """
    with store.begin() as session:
        lock_file(session, file.id)
        if jobs := store.jobs.naming_file(file.id, session):
            return jobs[0]
        store.files.delete(file.id, session)
    blobs.delete(file.blob)
    return None


def sweep(store: Store, blobs: Blobs, now: float | None = None, orphan_s: float = ORPHAN_S) -> int:
    """Delete what has expired; returns the number of deleted objects. Files that an unfinished job needs are kept."""
    now = time.time() if now is None else now
    deleted = 0
    for file in store.files.expired(now):
        deleted += delete_file(store, blobs, file) is None
    for upload in store.uploads.expired(now):
        if store.uploads.finish(upload.id, "expired"):
            for part in store.uploads.parts(upload.id):
                blobs.delete(part.blob)
            deleted += 1
    orphans = blobs.sweep(store.files.blobs() | store.uploads.part_blobs(), orphan_s)
    if deleted or orphans:
        _log.info("deleted %d expired files and uploads, %d unreferenced blobs", deleted, len(orphans))
    return deleted + len(orphans)

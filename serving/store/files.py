"""File metadata in the store. The content is stored by `serving/files/blobs.py`."""

import time
from collections.abc import Sequence

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from tunesmith.serving.store.tables import File
from tunesmith.serving.store.transactions import Slice, Transactions, changed, lock, take


class Files:
    def __init__(self, store: Transactions):
        self._store = store

    def add(self, file: File, session: Session | None = None) -> File:
        with self._store.begin(session) as tx:
            tx.add(file)
        return file

    def get(
        self, id: str, organization: str | None = None, *, also_expired: bool = False, session: Session | None = None
    ) -> File | None:
        """Return a file; None if it does not exist, belongs to another organization or has expired.

        also_expired: for a job created before the expiry; the bytes are kept while an unfinished job uses the file.
        """
        with self._store.read(session) as tx:
            query = select(File).where(File.id == id)
            if not also_expired:
                query = query.where(_unexpired())
            return tx.scalar(query if organization is None else query.where(File.organization == organization))

    def list(
        self, organization: str, after: File | None, limit: int, *, newest_first: bool, purpose: str | None
    ) -> Slice[File]:
        with self._store.read() as tx:
            query = select(File).where(File.organization == organization, _unexpired())
            if purpose is not None:
                query = query.where(File.purpose == purpose)
            return take(tx, query, File, after, limit, newest_first=newest_first)

    def delete(self, id: str, session: Session | None = None) -> bool:
        """Delete the row. Returns False if it did not exist."""
        with self._store.begin(session) as tx:
            return changed(tx, delete(File).where(File.id == id)) == 1

    def expired(self, now: float) -> Sequence[File]:
        with self._store.read() as tx:
            return tx.scalars(select(File).where(File.expires_at <= now)).all()

    def blobs(self) -> set[str]:
        """Blob names of all files."""
        with self._store.read() as tx:
            return set(tx.scalars(select(File.blob)))


def lock_file(session: Session, id: str) -> None:
    """Prevent others from creating a job with this file, or deleting it, until the transaction ends."""
    lock(session, f"file {id}")


def _unexpired():
    return or_(File.expires_at.is_(None), File.expires_at > time.time())

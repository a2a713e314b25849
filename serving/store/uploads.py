"""Multipart uploads in the store."""

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from tunesmith.serving.store.tables import Part, Upload
from tunesmith.serving.store.transactions import Transactions, changed


class Uploads:
    def __init__(self, store: Transactions):
        self._store = store

    def add(self, upload: Upload) -> Upload:
        with self._store.begin() as tx:
            tx.add(upload)
        return upload

    def get(self, id: str, organization: str) -> Upload | None:
        with self._store.read() as tx:
            return tx.scalar(select(Upload).where(Upload.id == id, Upload.organization == organization))

    def add_part(self, part: Part, now: float) -> str | None:
        """Add a part. Returns None, or the reason it was rejected: the upload's state, or `too large`."""
        with self._store.begin() as tx:
            upload = tx.scalar(select(Upload).where(Upload.id == part.upload_id).with_for_update())
            if upload is None or upload.status != "pending" or upload.expires_at <= now:
                return "gone" if upload is None else "expired" if upload.status == "pending" else upload.status
            received = tx.scalar(select(func.coalesce(func.sum(Part.bytes), 0)).where(Part.upload_id == part.upload_id))
            if int(received or 0) + part.bytes > upload.bytes:
                return "too large"
            tx.add(part)
        return None

    def parts(self, upload_id: str) -> list[Part]:
        with self._store.read() as tx:
            return list(tx.scalars(select(Part).where(Part.upload_id == upload_id).order_by(Part.sequence)))

    def finish(
        self,
        id: str,
        status: str,
        file_id: str | None = None,
        *,
        from_states: Sequence[str] = ("pending",),
        session: Session | None = None,
    ) -> bool:
        """Move an upload to its final `status`. Returns False if it was not in one of `from_states`."""
        with self._store.begin(session) as tx:
            change = update(Upload).where(Upload.id == id, Upload.status.in_(from_states))
            return changed(tx, change.values(status=status, file_id=file_id)) == 1

    def expired(self, now: float) -> list[Upload]:
        with self._store.read() as tx:
            return list(tx.scalars(select(Upload).where(Upload.status == "pending", Upload.expires_at <= now)))

    def part_blobs(self) -> set[str]:
        """Blob names of the parts of pending uploads."""
        with self._store.read() as tx:
            query = select(Part.blob).join(Upload, Upload.id == Part.upload_id).where(Upload.status == "pending")
            return set(tx.scalars(query))

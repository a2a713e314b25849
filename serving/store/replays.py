"""Responses stored under their Idempotency-Key, so that a repeated request is processed once."""

import time
from typing import Literal

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from tunesmith.serving.store.tables import Replay
from tunesmith.serving.store.transactions import Transactions

KEPT_S = 24 * 3600.0


class Replays:
    def __init__(self, store: Transactions):
        self._store = store

    def claim(
        self, organization: str, key_hash: str, request_hash: str, stale_s: float
    ) -> Replay | Literal["new", "busy", "other"]:
        """Claim a key for a request.

        Returns "new" (the caller must process the request), "busy" (the first request is in progress), "other" (the key
        belongs to a different request) or the stored response.

        stale_s: a first request in progress is abandoned if `renew` was not called for this long.
        """
        now = time.time()
        fresh = Replay(organization=organization, key_hash=key_hash, request_hash=request_hash, created_at=now)
        try:
            with self._store.begin() as tx:
                tx.execute(delete(Replay).where(Replay.created_at < now - KEPT_S))
                same = Replay.organization == organization, Replay.key_hash == key_hash
                stored = tx.scalar(select(Replay).where(*same).with_for_update())
                if stored is None:
                    tx.add(fresh)
                    return "new"
                if stored.request_hash != request_hash:
                    return "other"
                if stored.status is not None:
                    return stored
                if stored.created_at > now - stale_s:
                    return "busy"
                stored.created_at = now
                return "new"
        except IntegrityError:
            return "busy"

    def renew(self, organization: str, key_hash: str) -> None:
        """Record that the first request is still in progress."""
        with self._store.begin() as tx:
            same = Replay.organization == organization, Replay.key_hash == key_hash
            tx.execute(update(Replay).where(*same, Replay.status.is_(None)).values(created_at=time.time()))

    def save(self, organization: str, key_hash: str, status: int, media_type: str, body: bytes) -> None:
        with self._store.begin() as tx:
            same = Replay.organization == organization, Replay.key_hash == key_hash
            tx.execute(update(Replay).where(*same).values(status=status, media_type=media_type, body=body))

    def release(self, organization: str, key_hash: str) -> None:
        """Free the key of a request that was not successful, so that it can be sent again."""
        with self._store.begin() as tx:
            same = Replay.organization == organization, Replay.key_hash == key_hash
            tx.execute(delete(Replay).where(*same, Replay.status.is_(None)))

"""Answers kept for an Idempotency-Key, so that a request that is sent twice is done once."""

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

    def open(
        self, organization: str, key_hash: str, request_hash: str, stale_s: float
    ) -> Replay | Literal["new", "busy", "other"]:
        """What is known of a key: nothing (it is now this request's to answer), a first request that is still being
        answered, another request than this one, or the answer.

        stale_s: after this time without a word (`hold`), the process that works on the first request counts as dead.
        """
        now = time.time()
        fresh = Replay(organization=organization, key_hash=key_hash, request_hash=request_hash, created_at=now)
        try:
            with self._store.begin() as tx:
                tx.execute(delete(Replay).where(Replay.created_at < now - KEPT_S))
                same = Replay.organization == organization, Replay.key_hash == key_hash
                found = tx.scalar(select(Replay).where(*same).with_for_update())
                if found is None:
                    tx.add(fresh)
                    return "new"
                if found.request_hash != request_hash:
                    return "other"
                if found.status is not None:
                    return found
                if found.created_at > now - stale_s:
                    return "busy"
                found.created_at = now
                return "new"
        except IntegrityError:
            return "busy"

    def hold(self, organization: str, key_hash: str) -> None:
        """The first request is still being answered."""
        with self._store.begin() as tx:
            same = Replay.organization == organization, Replay.key_hash == key_hash
            tx.execute(update(Replay).where(*same, Replay.status.is_(None)).values(created_at=time.time()))

    def keep(self, organization: str, key_hash: str, status: int, media_type: str, body: bytes) -> None:
        with self._store.begin() as tx:
            same = Replay.organization == organization, Replay.key_hash == key_hash
            tx.execute(update(Replay).where(*same).values(status=status, media_type=media_type, body=body))

    def drop(self, organization: str, key_hash: str) -> None:
        """The request came to nothing: it may be sent again."""
        with self._store.begin() as tx:
            same = Replay.organization == organization, Replay.key_hash == key_hash
            tx.execute(delete(Replay).where(*same, Replay.status.is_(None)))

"""API keys in the store, hashed. A key has 190 random bits, so a plain SHA-256 cannot be reversed."""

import hashlib
import hmac
import time
from collections.abc import Sequence

from sqlalchemy import func, or_, select, update

from tunesmith.serving.names import make_id, random_text
from tunesmith.serving.store.tables import Key
from tunesmith.serving.store.transactions import Transactions

PREFIX = "sk-tunesmith-"
SCOPES = (*("files:read", "files:write", "jobs:read", "jobs:write", "models:read", "models:write", "inference"),)
"""Permissions of a key by default."""
METRICS = "metrics"
"""Permission to read the numbers of all organizations; only keys that were created with it have it."""
ALL_SCOPES = (*SCOPES, METRICS)


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class Keys:
    def __init__(self, store: Transactions):
        self._store = store

    def create(self, name: str, organization: str, scopes: Sequence[str] = SCOPES) -> tuple[str, Key]:
        """Create a key. Returns the secret, which is not stored, and the row."""
        secret = PREFIX + random_text(32)
        key = Key(
            id=make_id("key_"), key_hash=hash_of(secret), hint=secret[-4:], name=name, created_at=int(time.time())
        )
        key.organization, key.scopes = organization, list(scopes)
        with self._store.begin() as tx:
            tx.add(key)
        return secret, key

    def find(self, secret: str) -> Key | None:
        """The row of a valid key, looked up by its hash, which is compared in constant time."""
        digest = hash_of(secret)
        with self._store.read() as tx:
            key = tx.scalar(select(Key).where(Key.key_hash == digest))
        if key is None or not hmac.compare_digest(key.key_hash, digest) or key.revoked_at is not None:
            return None
        return key

    def list(self) -> Sequence[Key]:
        with self._store.read() as tx:
            return tx.scalars(select(Key).order_by(Key.created_at, Key.sequence)).all()

    def any_ever(self) -> bool:
        """Whether a key was ever created, revoked ones included: from then on every request needs a key."""
        with self._store.read() as tx:
            return bool(tx.scalar(select(func.count()).select_from(Key)))

    def any_valid(self) -> bool:
        with self._store.read() as tx:
            return bool(tx.scalar(select(func.count()).select_from(Key).where(Key.revoked_at.is_(None))))

    def revoke(self, id_or_name: str) -> Sequence[Key]:
        """Revoke every valid key with this id or name; returns them."""
        with self._store.begin() as tx:
            which = or_(Key.id == id_or_name, Key.name == id_or_name), Key.revoked_at.is_(None)
            keys = tx.scalars(select(Key).where(*which)).all()
            ids = [key.id for key in keys]
            tx.execute(update(Key).where(Key.id.in_(ids)).values(revoked_at=int(time.time())))
        return keys

"""A POST that is sent twice with one Idempotency-Key is done once: the second gets the first one's answer.

Only good answers are kept, for a day: a request that was refused did nothing and may be tried again. Chats are not
kept. Where a process dies between the deed and its answer, the key is free again after a while; a job is made once
even then, since the store holds its key beside it.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from tunesmith.serving.errors import ApiError
from tunesmith.serving.gate.asgi import App, Message, Receive, Scope, Send, header, refuse
from tunesmith.serving.routes.context import Caller
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Replay

MAX_KEPT_BYTES = 1 << 20
STALE_S = 60.0
"""A first request of which nothing is heard for this long counts as one of a process that died."""
_log = logging.getLogger("tunesmith.serving")


class Replays:
    def __init__(self, app: App, store: Store):
        self._app, self._store = app, store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get("tunesmith.caller")
        if not isinstance(caller, Caller) or caller.idempotency is None or not _is_kept(scope):
            return await self._app(scope, receive, send)
        place = caller.organization, caller.idempotency
        known = await to_thread.run_sync(self._store.replays.open, *place, request_hash(scope), STALE_S)
        if isinstance(known, Replay):
            return await _repeat(known, send)
        if known == "busy":
            # 409: the client waits and asks again
            error = ApiError("A request with this Idempotency-Key is being answered", status=409, code="in_progress")
            return await refuse(error, scope, receive, send)
        if known == "other":
            error = ApiError(
                "This Idempotency-Key was used for another request",
                param="Idempotency-Key",
                code="idempotency_key_reused",
            )
            return await refuse(error, scope, receive, send)
        # A job holds its key for longer than a day: it is the key of this very request.
        once = hashlib.sha256(f"{caller.idempotency} {request_hash(scope)}".encode()).hexdigest()
        scope["tunesmith.caller"] = replace(caller, idempotency=once)
        copy = Copy(send, partial(self._store.replays.keep, *place))
        living = asyncio.create_task(self._hold(*place))
        try:
            await self._app(scope, receive, copy)
        finally:
            living.cancel()
            if not copy.is_kept:
                await to_thread.run_sync(self._store.replays.drop, *place)
        return None

    async def _hold(self, organization: str, key_hash: str) -> None:
        """Say now and then that the first request is still being answered: joining a large file takes minutes."""
        while True:
            await asyncio.sleep(STALE_S / 4)
            try:
                await to_thread.run_sync(self._store.replays.hold, organization, key_hash)
            except SQLAlchemyError:  # a store that is away comes back, and the request itself will say so
                _log.warning("an Idempotency-Key could not be held", exc_info=True)


class Copy:
    """`send` that gives a good and short answer to `keep` before the client has the last of it: what was answered once
    is never done again, whatever dies then."""

    def __init__(self, send: Send, keep: Callable[[int, str, bytes], None]):
        self._send, self._keep = send, keep
        self.status, self.media_type, self.body, self.is_kept = 0, "", b"", False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            found = (value for key, value in message.get("headers", []) if key.lower() == b"content-type")
            self.media_type = next(found, b"").decode("latin-1")
        elif message["type"] == "http.response.body":
            if len(self.body) <= MAX_KEPT_BYTES:
                self.body += message.get("body", b"")
            is_good = 200 <= self.status < 300 and len(self.body) <= MAX_KEPT_BYTES
            if is_good and not message.get("more_body", False):
                await self._to_store()
        await self._send(message)

    async def _to_store(self) -> None:
        try:
            await to_thread.run_sync(self._keep, self.status, self.media_type, self.body)
            self.is_kept = True
        except SQLAlchemyError:  # the deed is done, and its answer is good all the same
            _log.warning("an answer could not be kept for its Idempotency-Key", exc_info=True)


def request_hash(scope: Scope) -> str:
    """Of method, path and body; of a file's body, which is not read here, the length."""
    body = scope.get("tunesmith.body")
    told = body if body is not None else (header(scope, b"content-length") or "").encode()
    return hashlib.sha256(b"\0".join([scope["method"].encode(), scope["path"].encode(), told])).hexdigest()


def _is_kept(scope: Scope) -> bool:
    return scope["method"] == "POST" and not scope["path"].startswith(("/v1/chat/", "/v1/completions"))


async def _repeat(known: Replay, send: Send) -> None:
    headers = [(b"content-type", (known.media_type or "application/json").encode()), (b"idempotent-replayed", b"true")]
    body = known.body or b""
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": known.status or 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

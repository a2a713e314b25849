"""Idempotent POST requests: a repetition with the same Idempotency-Key returns the stored response of the first.

Only successful responses are stored, for a day: a rejected request had no effect and may be retried. Chats and
completions are not stored. If a process exits between processing a request and storing its response, the key becomes
free after STALE_S; a job is created once even then, because the key is stored with the job.
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
from tunesmith.serving.middleware.asgi import App, Message, Receive, Scope, Send, header, send_error
from tunesmith.serving.routes.context import Caller
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Replay

MAX_STORED_BYTES = 1 << 20
STALE_S = 60.0
"""A request in progress whose key was not renewed for this long is considered abandoned."""
_log = logging.getLogger("tunesmith.serving")


class Idempotency:
    def __init__(self, app: App, store: Store):
        self._app, self._store = app, store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get("tunesmith.caller")
        if not isinstance(caller, Caller) or caller.idempotency is None or not _is_stored(scope):
            return await self._app(scope, receive, send)
        place = caller.organization, caller.idempotency
        claim = await to_thread.run_sync(self._store.replays.claim, *place, request_hash(scope), STALE_S)
        if isinstance(claim, Replay):
            return await _repeat(claim, send)
        if claim == "busy":
            # 409: the client waits and retries
            error = ApiError("A request with this Idempotency-Key is in progress", status=409, code="in_progress")
            return await send_error(error, scope, receive, send)
        if claim == "other":
            error = ApiError(
                "This Idempotency-Key was used for a different request",
                param="Idempotency-Key",
                code="idempotency_key_reused",
            )
            return await send_error(error, scope, receive, send)
        # A job stores its key for longer than a day: the hash includes the request, so that the key can be reused.
        request_key = hashlib.sha256(f"{caller.idempotency} {request_hash(scope)}".encode()).hexdigest()
        scope["tunesmith.caller"] = replace(caller, idempotency=request_key)
        recorder = Recorder(send, partial(self._store.replays.save, *place))
        renewal = asyncio.create_task(self._keep_renewing(*place))
        try:
            await self._app(scope, receive, recorder)
        finally:
            renewal.cancel()
            if not recorder.is_stored:
                await to_thread.run_sync(self._store.replays.release, *place)
        return None

    async def _keep_renewing(self, organization: str, key_hash: str) -> None:
        """Renew the claim while the request is in progress: joining the parts of a large file takes minutes."""
        while True:
            await asyncio.sleep(STALE_S / 4)
            try:
                await to_thread.run_sync(self._store.replays.renew, organization, key_hash)
            except SQLAlchemyError:  # the database may be unreachable for a while; the request itself reports that
                _log.warning("an Idempotency-Key could not be renewed", exc_info=True)


class Recorder:
    """`send` that stores a successful, short response with `save` before its last chunk is sent: a request whose
    response arrived is never processed again, even if the server is killed afterwards."""

    def __init__(self, send: Send, save: Callable[[int, str, bytes], None]):
        self._send, self._save = send, save
        self.status, self.media_type, self.body, self.is_stored = 0, "", b"", False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            types = (value for key, value in message.get("headers", []) if key.lower() == b"content-type")
            self.media_type = next(types, b"").decode("latin-1")
        elif message["type"] == "http.response.body":
            if len(self.body) <= MAX_STORED_BYTES:
                self.body += message.get("body", b"")
            is_storable = 200 <= self.status < 300 and len(self.body) <= MAX_STORED_BYTES
            if is_storable and not message.get("more_body", False):
                await self._store()
        await self._send(message)

    async def _store(self) -> None:
        try:
            await to_thread.run_sync(self._save, self.status, self.media_type, self.body)
            self.is_stored = True
        except SQLAlchemyError:  # the request was processed: send its response regardless
            _log.warning("a response could not be stored for its Idempotency-Key", exc_info=True)


def request_hash(scope: Scope) -> str:
    """Hash of method, path and body; of a file upload, whose body is not read here, the length instead."""
    body = scope.get("tunesmith.body")
    content = body if body is not None else (header(scope, b"content-length") or "").encode()
    return hashlib.sha256(b"\0".join([scope["method"].encode(), scope["path"].encode(), content])).hexdigest()


def _is_stored(scope: Scope) -> bool:
    return scope["method"] == "POST" and not scope["path"].startswith(("/v1/chat/", "/v1/completions"))


async def _repeat(stored: Replay, send: Send) -> None:
    media_type = stored.media_type or "application/json"
    headers = [(b"content-type", media_type.encode()), (b"idempotent-replayed", b"true")]
    body = stored.body or b""
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": stored.status or 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

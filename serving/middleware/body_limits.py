"""Size and time limits of request bodies. File uploads are streamed to the route and aborted at a limit; every other
body is read completely here."""

import asyncio
import json
import math
import re
import time

from anyio import to_thread

from tunesmith.serving.errors import ApiError
from tunesmith.serving.files.jsonl import MAX_BRANCHES, num_branches
from tunesmith.serving.middleware.asgi import App, Message, Receive, Scope, Send, header, send_error
from tunesmith.serving.settings import Limits

FORM_BYTES = 1 << 16
"""Allowance for the boundaries and other fields of a form, added to the file size limit."""
LINGER_BYTES, LINGER_S = 8 << 20, 2.0
"""How much of a rejected body is still read: a client that is disconnected while it sends may not see the response."""
OPEN_BYTES = 1 << 10
"""Body size limit of paths without authentication."""
LARGE_TEXT_BYTES = 1 << 18
"""Larger JSON is checked in a thread, so that the event loop is not blocked."""
_PART = re.compile(r"/v1/uploads/[^/]+/parts")


class ClientDisconnected(Exception):
    """The client disconnected."""


class BodyLimits:
    def __init__(self, app: App, limits: Limits):
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limits = self._limits
        streamed = streamed_bytes(scope, limits)
        largest = limits.max_body_bytes if streamed is None else streamed + FORM_BYTES
        if "tunesmith.caller" not in scope:  # no authentication on this path: no route there reads a body
            largest = OPEN_BYTES
        total_s = limits.request_timeout_s if streamed is None else limits.upload_timeout_s
        limited = LimitedReceive(receive, largest, total_s, limits.request_timeout_s)
        try:
            _check_length(scope, largest)
            if streamed is not None:
                return await self._app(scope, limited, send)
            body = await limited.whole()
            if len(body) > LARGE_TEXT_BYTES:
                await to_thread.run_sync(_check_text, scope, body)
            else:
                _check_text(scope, body)
        except ClientDisconnected:
            return None
        except ApiError as error:
            if limited.failed is None and not limited.is_complete:
                await linger(receive)
            return await send_error(error, scope, receive, send)
        scope["tunesmith.body"] = body
        return await self._app(scope, BufferedReceive(body, receive), send)


def streamed_bytes(scope: Scope, limits: Limits) -> int | None:
    """The file size limit of a request that uploads a file; None for every other request."""
    path = scope["path"].rstrip("/")
    if scope["method"] != "POST":
        return None
    if path == "/v1/files":
        return limits.max_file_bytes
    return limits.max_part_bytes if _PART.fullmatch(path) else None


class LimitedReceive:
    """`receive` with limits. Raises ApiError (413, 408) once a limit is exceeded, and on every later call."""

    def __init__(self, receive: Receive, largest: int, total_s: float, pause_s: float):
        self._receive, self._largest, self._pause_s = receive, largest, pause_s
        self._until = time.monotonic() + total_s
        self._seen = 0
        self.is_complete = False
        self.failed: ApiError | None = None

    async def __call__(self) -> Message:
        if self.is_complete:  # only the disconnect follows, at any time
            return await self._receive()
        if self.failed is not None:
            raise self.failed
        wait_s = min(self._pause_s, self._until - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(wait_s, 0.001))
        except TimeoutError:
            self.failed = ApiError("Timed out while reading the request body", status=408, code="request_timeout")
            raise self.failed from None
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)
            if self._seen > self._largest:
                raise too_large(self._largest)
        return message

    async def whole(self) -> bytes:
        chunks = []
        while True:
            message = await self()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(chunks)


class BufferedReceive:
    """`receive` that returns a body that was already read."""

    def __init__(self, body: bytes, receive: Receive):
        self._body, self._receive, self._is_sent = body, receive, False

    async def __call__(self) -> Message:
        if self._is_sent:
            return await self._receive()
        self._is_sent = True
        return {"type": "http.request", "body": self._body, "more_body": False}


def too_large(largest: int) -> ApiError:
    return ApiError(f"The request body is larger than {largest} bytes", status=413, code="request_too_large")


def _check_length(scope: Scope, largest: int) -> None:
    if (length := header(scope, b"content-length")) is not None and int(length) > largest:
        raise too_large(largest)


def _check_text(scope: Scope, body: bytes) -> None:
    """Reject JSON that takes much more memory than its text, or that cannot be stored or returned: null characters,
    lone surrogates, non-finite numbers."""
    kind = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
    if not body or not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        return
    if num_branches(body) > MAX_BRANCHES:
        raise ApiError(f"The request body contains more than {MAX_BRANCHES} lists and objects")
    if b"\\u" not in body and b"e" not in body and b"E" not in body and b"N" not in body:
        return
    try:
        parsed = json.loads(body, parse_constant=_reject_constant)
    except RecursionError:
        raise ApiError("The request body is nested too deeply") from None
    except ValueError:
        raise ApiError("The request body is not valid JSON") from None
    _check_values(parsed)


def _check_values(value: object) -> None:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, str) and not _is_storable(item):
            raise ApiError("A string in the request body contains a null character or a lone surrogate")
        elif isinstance(item, float) and not math.isfinite(item):
            raise ApiError("A number in the request body is not finite")


def _is_storable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return "\0" not in text


def _reject_constant(name: str) -> None:
    raise ValueError(name)


async def linger(receive: Receive) -> None:
    """Read and discard what the client is still sending, up to LINGER_BYTES and LINGER_S."""
    seen, deadline = 0, time.monotonic() + LINGER_S
    while seen < LINGER_BYTES and (wait_s := deadline - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), wait_s)
        except TimeoutError:
            return
        seen += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return

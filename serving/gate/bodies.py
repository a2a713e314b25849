"""Bodies come in under limits: of bytes, and of time. Most are read whole here; those of files are passed on as they
come, and cut off where they go beyond a limit."""

import asyncio
import json
import math
import re
import time

from anyio import to_thread

from tunesmith.serving.errors import ApiError
from tunesmith.serving.files.jsonl import MAX_BRANCHES, num_branches
from tunesmith.serving.gate.asgi import App, Message, Receive, Scope, Send, header, refuse
from tunesmith.serving.settings import Limits

FORM_BYTES = 1 << 16
"""What the other fields of a form and its boundaries may add to a file."""
LINGER_BYTES, LINGER_S = 8 << 20, 2.0
"""How much of a refused body is still read: a client that is cut off while it writes may not see the answer."""
OPEN_BYTES = 1 << 10
"""What a request may bring to a path that is open to everybody."""
LARGE_TEXT_BYTES = 1 << 18
"""JSON beyond this is looked through in a thread: the event loop serves the others meanwhile."""
_PART = re.compile(r"/v1/uploads/[^/]+/parts")


class Gone(Exception):
    """The client left."""


class Bodies:
    def __init__(self, app: App, limits: Limits):
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limits = self._limits
        streamed = streamed_bytes(scope, limits)
        largest = limits.max_body_bytes if streamed is None else streamed + FORM_BYTES
        if "tunesmith.caller" not in scope:  # the gate asked nobody who it is: nothing there takes a body
            largest = OPEN_BYTES
        total_s = limits.request_timeout_s if streamed is None else limits.upload_timeout_s
        counted = Counted(receive, largest, total_s, limits.request_timeout_s)
        try:
            _check_length(scope, largest)
            if streamed is not None:
                return await self._app(scope, counted, send)
            body = await counted.whole()
            if len(body) > LARGE_TEXT_BYTES:
                await to_thread.run_sync(_check_text, scope, body)
            else:
                _check_text(scope, body)
        except Gone:
            return None
        except ApiError as error:
            if counted.failed is None:
                await linger(receive)
            return await refuse(error, scope, receive, send)
        scope["tunesmith.body"] = body
        return await self._app(scope, Replayed(body, receive), send)


def streamed_bytes(scope: Scope, limits: Limits) -> int | None:
    """The largest file of a request whose body holds one; None for every other request."""
    path = scope["path"].rstrip("/")
    if scope["method"] != "POST":
        return None
    if path == "/v1/files":
        return limits.max_file_bytes
    return limits.max_part_bytes if _PART.fullmatch(path) else None


class Counted:
    """`receive` with limits. Raises ApiError (413, 408) once one is reached, and from then on."""

    def __init__(self, receive: Receive, largest: int, total_s: float, pause_s: float):
        self._receive, self._largest, self._pause_s = receive, largest, pause_s
        self._until = time.monotonic() + total_s
        self._seen = 0
        self._complete = False
        self.failed: ApiError | None = None

    async def __call__(self) -> Message:
        if self._complete:  # what comes now is the client's leaving, and may come late
            return await self._receive()
        if self.failed is not None:
            raise self.failed
        wait_s = min(self._pause_s, self._until - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(wait_s, 0.001))
        except TimeoutError:
            self.failed = ApiError("The body of the request did not arrive in time", status=408, code="request_timeout")
            raise self.failed from None
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._seen > self._largest:
                raise too_large(self._largest)
        return message

    async def whole(self) -> bytes:
        pieces = []
        while True:
            message = await self()
            if message["type"] == "http.disconnect":
                raise Gone
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(pieces)


class Replayed:
    """`receive` of a body that was read already."""

    def __init__(self, body: bytes, receive: Receive):
        self._body, self._receive, self._given = body, receive, False

    async def __call__(self) -> Message:
        if self._given:
            return await self._receive()
        self._given = True
        return {"type": "http.request", "body": self._body, "more_body": False}


def too_large(largest: int) -> ApiError:
    return ApiError(f"The body of the request is larger than {largest} bytes", status=413, code="request_too_large")


def _check_length(scope: Scope, largest: int) -> None:
    if (length := header(scope, b"content-length")) is not None and int(length) > largest:
        raise too_large(largest)


def _check_text(scope: Scope, body: bytes) -> None:
    """Refuse JSON that takes much more room than its text, or that no store and no answer can hold: null characters,
    halves of characters, numbers without end."""
    kind = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
    if not body or not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        return
    if num_branches(body) > MAX_BRANCHES:
        raise ApiError(f"The body of the request holds more than {MAX_BRANCHES} lists and objects")
    if b"\\u" not in body and b"e" not in body and b"E" not in body and b"N" not in body:
        return
    try:
        parsed = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise ApiError("The body of the request is nested too deeply") from None
    except ValueError:
        raise ApiError("The body of the request is not JSON") from None
    _check_values(parsed)


def _check_values(value: object) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str) and not _is_storable(item):
            raise ApiError("A text in the body of the request holds a null character or half of a character")
        elif isinstance(item, float) and not math.isfinite(item):
            raise ApiError("A number in the body of the request is not finite")


def _is_storable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a character
        return False
    return "\0" not in text


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


async def linger(receive: Receive) -> None:
    """Read what is on its way, for a while."""
    seen, until = 0, time.monotonic() + LINGER_S
    while seen < LINGER_BYTES and (wait_s := until - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), wait_s)
        except TimeoutError:
            return
        seen += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return

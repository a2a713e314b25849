"""Who did what and when, one JSON object a line, a file a day; and a fault behind the gate becomes the API's 500.

What is never written: keys, headers, queries, bodies.
"""

import logging
import threading
import time
from pathlib import Path
from typing import TypedDict

from tunesmith.rundir.json_lines import LineFile
from tunesmith.serving.answers import unexpected
from tunesmith.serving.gate.asgi import App, Message, Receive, Scope, Send, address_of, refuse
from tunesmith.serving.names import make_id

_log = logging.getLogger("tunesmith.serving")


class CallerNote(TypedDict, total=False):
    """Who sent a request, once that is known (`gate/callers.py`)."""

    organization: str
    key: str | None


class AuditEntry(CallerNote):
    """A request. time: in seconds since the epoch."""

    time: float
    request: str
    address: str
    method: str
    path: str
    status: int
    seconds: float


class AuditLog:
    """Appends to `audit-YYYY-MM-DD.jsonl` (UTC). Several processes may write to one."""

    def __init__(self, folder: Path):
        self._folder, self._day, self._lines = folder, "", None
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, entry: AuditEntry) -> None:
        day = time.strftime("%Y-%m-%d", time.gmtime(entry["time"]))
        with self._lock:
            if self._lines is None or day != self._day:
                if self._lines is not None:
                    self._lines.close()
                path = self._folder / f"audit-{day}.jsonl"
                self._lines, self._day = LineFile(path), day
                path.chmod(0o600)
            self._lines.append(dict(entry))

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None


class Audit:
    """The outermost piece: gives every request an id, catches what nobody caught, writes the line."""

    def __init__(self, app: App, log: AuditLog):
        self._app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status, is_written = time.time(), 0, False
        request_id = make_id("req_")
        scope["tunesmith.note"] = {}

        async def told(message: Message) -> None:
            nonlocal status, is_written
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = (b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")
                message["headers"] = [*message.get("headers", []), *extra]
            elif not message.get("more_body", False):  # whoever has the whole answer stands in the log
                self._write(scope, request_id, began, status)
                is_written = True
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception as error:
            fault = unexpected(error, f"{scope['method']} {scope['path'][:200]!r}")
            if status == 0:
                await refuse(fault, scope, receive, told)
        finally:
            if not is_written:
                self._write(scope, request_id, began, status)
        return None

    def _write(self, scope: Scope, request_id: str, began: float, status: int) -> None:
        note: CallerNote = scope["tunesmith.note"]
        entry: AuditEntry = {
            "time": round(began, 3),
            "request": request_id,
            "address": address_of(scope),
            "method": scope["method"][:16],
            "path": scope["path"][:200],
            "status": status,
            "seconds": round(time.time() - began, 4),
            **note,
        }
        try:
            self._log.write(entry)
        except OSError:  # a full disk: the deed is done, and its answer must not be torn
            _log.exception("the audit log takes no line: %s", entry)

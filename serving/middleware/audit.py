"""Audit log: one JSON object per request, one file per day. Uncaught exceptions become a 500 in the API's format.

Never logged: keys, headers, queries, bodies.
"""

import logging
import threading
import time
from pathlib import Path
from typing import TypedDict

from tunesmith.rundir.json_lines import LineFile
from tunesmith.serving.error_handlers import server_error
from tunesmith.serving.middleware.asgi import App, Message, Receive, Scope, Send, address_of, send_error
from tunesmith.serving.names import make_id

_log = logging.getLogger("tunesmith.serving")


class CallerNote(TypedDict, total=False):
    """Who sent a request; filled in by authentication."""

    organization: str
    key: str | None


class AuditEntry(CallerNote):
    """An entry of the audit log. time: seconds since the epoch. seconds: duration."""

    time: float
    request: str
    address: str
    method: str
    path: str
    status: int
    seconds: float


class AuditLog:
    """Appends to `audit-YYYY-MM-DD.jsonl` (UTC). Several processes may append to the same file."""

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
    """The outermost middleware: assigns request ids, handles uncaught exceptions, writes the audit log."""

    def __init__(self, app: App, log: AuditLog):
        self._app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started_at, status, is_written = time.time(), 0, False
        request_id = make_id("req_")
        scope["tunesmith.note"] = {}

        async def send_and_log(message: Message) -> None:
            nonlocal status, is_written
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = (b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")
                message["headers"] = [*message.get("headers", []), *extra]
            elif not message.get("more_body", False):  # logged before the client has the complete response
                self._write(scope, request_id, started_at, status)
                is_written = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_log)
        except Exception as error:
            response = server_error(error, f"{scope['method']} {scope['path'][:200]!r}")
            if status == 0:
                await send_error(response, scope, receive, send_and_log)
        finally:
            if not is_written:
                self._write(scope, request_id, started_at, status)
        return None

    def _write(self, scope: Scope, request_id: str, started_at: float, status: int) -> None:
        note: CallerNote = scope["tunesmith.note"]
        entry: AuditEntry = {
            "time": round(started_at, 3),
            "request": request_id,
            "address": address_of(scope),
            "method": scope["method"][:16],
            "path": scope["path"][:200],
            "status": status,
            "seconds": round(time.time() - started_at, 4),
            **note,
        }
        try:
            self._log.write(entry)
        except OSError:  # disk full: the request was processed, and its response must still be sent
            _log.exception("could not write to the audit log: %s", entry)

"""HTTP/1.1 with what uvicorn lacks: a time limit for the request head, the API's error format for requests that are not
valid HTTP, and rejection of requests whose body length is ambiguous.

A proxy in front of the server that measures an ambiguous body differently would take a part of it for the next request
of another client (request smuggling, RFC 9112, section 11.2).
"""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.serving.errors import ApiError
from tunesmith.serving.names import make_id


class StrictConnection(h11.Connection):
    """error: of the last event, for the response."""

    error: h11.RemoteProtocolError | None = None

    def next_event(self) -> Any:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _require_valid(event)
        except h11.RemoteProtocolError as error:
            self.error = error
            raise
        return event


def _require_valid(request: h11.Request) -> None:
    """Reject what h11 accepts: other versions, and two ways to give the length. Raises h11.RemoteProtocolError."""
    if request.http_version not in (b"1.0", b"1.1"):
        raise h11.RemoteProtocolError("this server speaks HTTP/1.1", error_status_hint=505)
    names = {name.lower() for name, _ in request.headers}
    if b"transfer-encoding" not in names:
        return
    if b"content-length" in names:
        raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding are given")
    if request.http_version < b"1.1":
        raise h11.RemoteProtocolError("Transfer-Encoding needs HTTP/1.1")


class HttpProtocol(H11Protocol):
    HEAD_S = 20.0
    LINGER_S = 2.0
    """How long the rest of a rejected request is discarded: a client that is disconnected while it sends may not see
    the response."""
    _head: asyncio.TimerHandle | None = None
    _is_rejected = False

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.conn = StrictConnection(h11.SERVER, self.conn._max_incomplete_event_size)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head = self.loop.call_later(self.HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        if self._is_rejected:
            return
        super().data_received(data)
        if self._is_rejected:
            return
        if self.cycle is not None and not self.cycle.response_complete:  # a request is in progress: its head arrived
            self._cancel_timer()
        elif self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self.HEAD_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._cancel_timer()  # from here uvicorn's own keep-alive timeout applies
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Respond to a request that is not valid HTTP, or whose body is not, and close the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the app must not respond a second time
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(self._error_response(self.conn.error))
        self._is_rejected = True
        self._unset_keepalive_if_required()
        self._cancel_timer()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._head = self.loop.call_later(self.LINGER_S, self.transport.close)
        else:  # TLS
            self.transport.close()

    def _error_response(self, error: h11.RemoteProtocolError | None) -> bytes:
        reason = str(error).rstrip(".") if error is not None else "it cannot be parsed"
        api_error = ApiError(f"Invalid HTTP request: {reason}", code="invalid_http_request")
        body = json.dumps(api_error.body()).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        headers.append(("X-Request-Id", make_id("req_")))
        status = error.error_status_hint if error is not None else 400
        parts = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        return b"".join(self.conn.send(part) or b"" for part in parts)

    def _cancel_timer(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

"""ASGI types and helper functions of the middleware."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tunesmith.serving.error_handlers import error_response
from tunesmith.serving.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of this name (lower case)."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def headers(scope: Scope, name: bytes) -> list[str]:
    """All headers of this name (lower case)."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


async def send_error(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an error response and close the connection, because the request may not have been read completely."""
    await error_response(error, {"Connection": "close"})(scope, receive, send)


def address_of(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"

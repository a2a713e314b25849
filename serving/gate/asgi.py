"""The few words of ASGI that the gate's pieces share."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tunesmith.serving.answers import answer
from tunesmith.serving.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of this (lower case) name."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error; the connection ends, since its request may not have been read."""
    await answer(error, {"Connection": "close"})(scope, receive, send)


def address_of(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"

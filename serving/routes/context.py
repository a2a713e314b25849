"""What a route gets: the server it belongs to, and who calls.

    @router.get("/things")
    def things(server: Here, caller: By) -> dict[str, Any]: ...

Routes that touch the store are plain functions: they run in threads, and the event loop waits for no database.
"""

from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from tunesmith.serving.engine.protocol import Engine
from tunesmith.serving.errors import ApiError
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store

Found = TypeVar("Found")


@dataclass(frozen=True)
class Server:
    """engine: None where this server answers no chats (tests of other routes)."""

    settings: Settings
    store: Store
    blobs: Blobs
    engine: Engine | None = None


@dataclass(frozen=True)
class Caller:
    """Who asks. key_id: None where the server runs without keys. idempotency: hash of the request's Idempotency-Key, in
    a route of the request itself too."""

    organization: str
    scopes: frozenset[str]
    key_id: str | None = None
    idempotency: str | None = None


def _server(request: Request) -> Server:
    return request.app.state.server


def _caller(request: Request) -> Caller:
    return request.scope["tunesmith.caller"]


Here = Annotated[Server, Depends(_server)]
By = Annotated[Caller, Depends(_caller)]


def engine_of(server: Server) -> Engine:
    """Raises ApiError where there is none."""
    if server.engine is None:
        raise ApiError("This server answers no chats", status=503, type="server_error", code="engine_not_started")
    return server.engine


def found(thing: Found | None, message: str, *, code: str | None = None, param: str | None = None) -> Found:
    """The thing, or the API's 404."""
    if thing is None:
        raise ApiError(message, status=404, code=code, param=param)
    return thing

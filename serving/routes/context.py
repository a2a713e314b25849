"""Dependencies of the routes: the server and the caller.

    @router.get("/things")
    def things(server: ServerDep, caller: CallerDep) -> dict[str, Any]: ...

Routes that use the store are plain functions: FastAPI runs them in threads, and the database never blocks the event
loop.
"""

from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from tunesmith.serving.engine.protocol import Engine
from tunesmith.serving.errors import ApiError
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.metrics import Metrics
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store

Item = TypeVar("Item")


@dataclass(frozen=True)
class Server:
    """The server's components. engine: None if inference is disabled (tests of other routes)."""

    settings: Settings
    store: Store
    blobs: Blobs
    engine: Engine | None = None
    metrics: Metrics = field(default_factory=Metrics)


@dataclass(frozen=True)
class Caller:
    """The authenticated caller. key_id: None if the server has no keys. idempotency: hash of the Idempotency-Key; in
    routes, of the key and the request."""

    organization: str
    scopes: frozenset[str]
    key_id: str | None = None
    idempotency: str | None = None


def _server(request: Request) -> Server:
    return request.app.state.server


def _caller(request: Request) -> Caller:
    return request.scope["tunesmith.caller"]


ServerDep = Annotated[Server, Depends(_server)]
CallerDep = Annotated[Caller, Depends(_caller)]


def require_known_query(request: Request) -> None:
    """A dependency of lists: an unknown filter must not select everything. Raises ApiError.

    `metadata` and `metadata[key]` are left to the list of jobs.
    """
    known = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
    names = [name for name, _ in request.query_params.multi_items()]
    if request.scope["route"].path.endswith("/jobs"):
        names = [name for name in names if not name.startswith("metadata")]
    for name in names:
        if name not in known:
            message = f"Unrecognized request argument supplied: {name[:100]}"
            raise ApiError(message, param=name[:100], code="unknown_parameter")
        if names.count(name) > 1:
            raise ApiError(f"`{name}` is given more than once.", param=name, code="invalid_value")


KnownQuery = Depends(require_known_query)


def engine_of(server: Server) -> Engine:
    """The inference engine. Raises ApiError (503) if there is none."""
    if server.engine is None:
        raise ApiError(
            "Inference is disabled on this server", status=503, type="server_error", code="engine_not_started"
        )
    return server.engine


def or_404(item: Item | None, message: str, *, code: str | None = None, param: str | None = None) -> Item:
    """Return the item. Raises ApiError (404) if it is None."""
    if item is None:
        raise ApiError(message, status=404, code=code, param=param)
    return item

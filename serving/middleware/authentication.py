"""Authentication by API key, and authorization by scope. Until a key exists, only local programs have access.

Scopes of a key: `files:read`, `files:write`, the same for `jobs` and `models`, `inference`, `metrics`. Reading is GET.
"""

import hashlib
from urllib.parse import urlsplit

from anyio import to_thread

from tunesmith.serving.errors import ApiError
from tunesmith.serving.middleware.asgi import App, Receive, Scope, Send, address_of, header, headers, send_error
from tunesmith.serving.middleware.rate_limits import RateLimits
from tunesmith.serving.routes.context import Caller
from tunesmith.serving.settings import Settings, is_loopback
from tunesmith.serving.store.keys import ALL_SCOPES, METRICS
from tunesmith.serving.store.store import Store

OPEN = ("/", "/healthz", "/openapi.json", "/favicon.ico")
OPEN_BELOW = ("/page/",)
"""Static files of the web page, which gets its data from /v1."""
SUBJECTS = (
    ("/v1/files", "files"),
    ("/v1/uploads", "files"),
    ("/v1/fine_tuning", "jobs"),
    ("/v1/models", "models"),
    ("/v1/chat/completions", "inference"),
    ("/v1/completions", "inference"),
    ("/metrics", METRICS),
)


class Authentication:
    def __init__(self, app: App, settings: Settings, store: Store, rates: RateLimits):
        self._app, self._settings, self._store, self._rates = app, settings, store, rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]):
            return await self._app(scope, receive, send)
        try:
            require_text(scope)
            caller = await self._authenticate(scope)
        except ApiError as error:
            wait_s = self._rates.take(f"address {address_of(scope)}")
            if wait_s > 0:
                return await send_error(self._rates.error(wait_s), scope, receive, send)
            return await send_error(error, scope, receive, send)
        scope["tunesmith.caller"] = caller
        scope["tunesmith.note"] |= {"organization": caller.organization, "key": caller.key_id}
        wait_s = self._rates.take(f"key {caller.key_id}" if caller.key_id else f"address {address_of(scope)}")
        if wait_s > 0:
            return await send_error(self._rates.error(wait_s), scope, receive, send)
        return await self._app(scope, receive, send)

    async def _authenticate(self, scope: Scope) -> Caller:
        kind, _, credentials = (header(scope, b"authorization") or "").partition(" ")
        secret = credentials.strip() if kind.lower() == "bearer" else ""
        key = await to_thread.run_sync(self._store.keys.find, secret) if secret else None
        if key is not None:
            scopes, organization, key_id = frozenset(map(str, key.scopes)), key.organization, key.id
        elif self._settings.on_loopback and not await to_thread.run_sync(self._store.keys.any_ever):
            require_local(scope)
            scopes, organization, key_id = frozenset(ALL_SCOPES), self._settings.organization, None
        elif secret:
            raise ApiError("Incorrect API key provided", status=401, code="invalid_api_key")
        else:
            raise ApiError(
                "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`.",
                status=401,
                code="missing_api_key",
            )
        if (needed := scope_for(scope["method"], scope["path"])) and needed not in scopes:
            raise ApiError(
                f"You have insufficient permissions for this operation. Missing scopes: {needed}",
                status=403,
                code="missing_scope",
            )
        idempotency_key = header(scope, b"idempotency-key")
        text = f"{organization}\0{scope['method']}\0{scope['path']}\0{idempotency_key}"
        key_hash = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() if idempotency_key else None
        return Caller(organization, scopes, key_id, key_hash)


def is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)


def scope_for(method: str, path: str) -> str | None:
    """The scope that a request needs; None if its path needs none."""
    for prefix, subject in SUBJECTS:
        if path == prefix or path.startswith(f"{prefix}/"):
            if subject in ("inference", METRICS):
                return subject
            return f"{subject}:{'read' if method in ('GET', 'HEAD', 'OPTIONS') else 'write'}"
    return None


def require_text(scope: Scope) -> None:
    """Reject null characters in path and query, which databases cannot search for. Raises ApiError."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        raise ApiError("The request URL contains a null character")


def require_local(scope: Scope) -> None:
    """Without keys, reject requests of other sites in a local browser: they carry the site's origin, or its name as
    the host, or the browser's note that they come from another site (images, scripts and forms have no origin). Raises
    ApiError."""
    names = [f"//{host}" for host in headers(scope, b"host") if host] + headers(scope, b"origin")
    if all(map(_is_local, names)) and "cross-site" not in headers(scope, b"sec-fetch-site"):
        return
    raise ApiError(
        "Without API keys this server accepts local requests only. Create a key: `tunesmith keys create NAME`.",
        status=403,
        code="not_local",
    )


def _is_local(url: str) -> bool:
    try:
        name = urlsplit(url).hostname
        return name is not None and (name == "localhost" or is_loopback(name))
    except ValueError:
        return False

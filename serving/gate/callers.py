"""Who may come in: API keys and what each may do. Without any key, only this machine's own programs.

A key's scopes: `files:read`, `files:write` and the same of `jobs` and `models`, and `inference`. Reading is GET.
"""

import hashlib
from urllib.parse import urlsplit

from anyio import to_thread

from tunesmith.serving.errors import ApiError
from tunesmith.serving.gate.asgi import App, Receive, Scope, Send, address_of, header, refuse
from tunesmith.serving.gate.rates import Rates
from tunesmith.serving.routes.context import Caller
from tunesmith.serving.settings import Settings, is_loopback
from tunesmith.serving.store.keys import SCOPES
from tunesmith.serving.store.store import Store

OPEN = ("/", "/healthz", "/openapi.json", "/favicon.ico")
OPEN_BELOW = ("/page/",)
"""The page's own files: what they show, they ask for below /v1."""
SUBJECTS = (
    ("/v1/files", "files"),
    ("/v1/uploads", "files"),
    ("/v1/fine_tuning", "jobs"),
    ("/v1/models", "models"),
    ("/v1/chat/completions", "inference"),
    ("/v1/completions", "inference"),
)


class Callers:
    def __init__(self, app: App, settings: Settings, store: Store, rates: Rates):
        self._app, self._settings, self._store, self._rates = app, settings, store, rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]):
            return await self._app(scope, receive, send)
        try:
            require_text(scope)
            caller = await self._who(scope)
        except ApiError as error:
            wait_s = self._rates.take(f"address {address_of(scope)}")
            if wait_s > 0:
                return await refuse(self._rates.refusal(wait_s), scope, receive, send)
            return await refuse(error, scope, receive, send)
        scope["tunesmith.caller"] = caller
        scope["tunesmith.note"] |= {"organization": caller.organization, "key": caller.key_id}
        wait_s = self._rates.take(f"key {caller.key_id}" if caller.key_id else f"address {address_of(scope)}")
        if wait_s > 0:
            return await refuse(self._rates.refusal(wait_s), scope, receive, send)
        return await self._app(scope, receive, send)

    async def _who(self, scope: Scope) -> Caller:
        kind, _, given = (header(scope, b"authorization") or "").partition(" ")
        secret = given.strip() if kind.lower() == "bearer" else ""
        key = await to_thread.run_sync(self._store.keys.find, secret) if secret else None
        if key is not None:
            scopes, organization, key_id = frozenset(map(str, key.scopes)), key.organization, key.id
        elif self._settings.on_loopback and not await to_thread.run_sync(self._store.keys.any_ever):
            require_local(scope)
            scopes, organization, key_id = frozenset(SCOPES), self._settings.organization, None
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
        sent = header(scope, b"idempotency-key")
        words = f"{organization}\0{scope['method']}\0{scope['path']}\0{sent}"
        once = hashlib.sha256(words.encode("utf-8", "replace")).hexdigest() if sent else None
        return Caller(organization, scopes, key_id, once)


def is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)


def scope_for(method: str, path: str) -> str | None:
    """The scope that a request needs; None where the path belongs to nothing that has one."""
    for prefix, subject in SUBJECTS:
        if path == prefix or path.startswith(f"{prefix}/"):
            if subject == "inference":
                return subject
            return f"{subject}:{'read' if method in ('GET', 'HEAD', 'OPTIONS') else 'write'}"
    return None


def require_text(scope: Scope) -> None:
    """No path and no query holds a null character: no store can look for one."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        raise ApiError("The request's URL holds a null character")


def require_local(scope: Scope) -> None:
    """Where there are no keys, a page of another site in a browser of this machine must not get in: its requests carry
    that site's origin, or its name as the host."""
    host = header(scope, b"host")
    origin = header(scope, b"origin")
    for name in (host and f"//{host}", origin):
        if name and not _is_local(name):
            raise ApiError(
                "Without API keys this server answers this machine only. `tunesmith keys create` makes a key.",
                status=403,
                code="not_local",
            )


def _is_local(url: str) -> bool:
    try:
        name = urlsplit(url).hostname
        return name is not None and (name == "localhost" or is_loopback(name))
    except ValueError:
        return False

"""Counts requests and measures their time, for /metrics."""

import time

from tunesmith.serving.metrics import Metrics
from tunesmith.serving.middleware.asgi import App, Message, Receive, Scope, Send

UNMATCHED = "unmatched"
"""Route of requests that reached none: unknown paths, and requests that were rejected before."""


class CountRequests:
    """The outermost middleware, so that it also counts what others reject."""

    def __init__(self, app: App, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status = time.perf_counter(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            route = getattr(scope.get("route"), "path", UNMATCHED)
            self._metrics.count(scope["method"], route, status, time.perf_counter() - begun)
        return None

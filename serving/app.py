"""The API as one ASGI application: routes behind a middleware stack."""

from fastapi import FastAPI

from tunesmith import __version__
from tunesmith.serving import error_handlers
from tunesmith.serving.engine.protocol import Engine
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.metrics import Metrics
from tunesmith.serving.middleware import stack
from tunesmith.serving.routes import chat, checkpoints, completions, files, jobs, metrics, models, page, runs, uploads
from tunesmith.serving.routes.context import Server
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store

ROUTERS = (files.router, uploads.router, models.router, jobs.router, runs.router, checkpoints.router)
ROUTERS += (chat.router, completions.router, page.router, metrics.router)
"""All routers; each declares its own path prefix."""


def create_app(settings: Settings, store: Store, engine: Engine | None = None) -> FastAPI:
    """Create the application. The caller closes store and engine; processes are started by `serving/process.py`."""
    app = FastAPI(
        title="Tunesmith",
        description="The OpenAI fine-tuning API on your own machines.",
        version=__version__,
        docs_url=None,  # FastAPI's docs page loads scripts from the internet
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    measured = Metrics()
    app.state.server = Server(settings, store, Blobs(settings.blobs_url), engine, measured)
    error_handlers.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/healthz", _health, include_in_schema=False)
    stack.install(app, settings, store, measured)
    return app


def _health() -> dict[str, str]:
    return {"status": "ok"}

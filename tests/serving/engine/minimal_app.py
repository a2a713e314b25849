"""The server's application with the embedded engine, without the supervisor, and with routes that inspect the engine.
Started by `serving` of conftest.py."""

import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from tunesmith.serving.app import create_app
from tunesmith.serving.engine.client import EmbeddedEngine
from tunesmith.serving.engine.protocol import EngineOptions
from tunesmith.serving.engine.vllm.engine import VllmEngine
from tunesmith.serving.engine.vllm.server import VllmOptions
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Model


def make_app(config: dict[str, Any]) -> FastAPI:
    bases = {name: base for name, (base, adapter) in config["models"].items() if not adapter}
    limits = {"requests_per_minute": 1_000_000, **config.get("limits", {})}
    settings = Settings.model_validate({"home": config["home"], "bases": bases, "limits": limits})
    engine = make_engine(config, settings)
    store = Store(settings.store_url)
    names = {directory: name for name, directory in bases.items()}
    for name, (base, adapter) in config["models"].items():
        if adapter:
            organization = settings.organization
            store.models.add(
                Model(name=name, organization=organization, created_at=0, base=names[base], adapter=adapter)
            )
    app = create_app(settings, store, engine)

    @asynccontextmanager
    async def lifespan(_app: FastAPI):
        yield
        await engine.close()
        store.close()

    app.router.lifespan_context = lifespan

    @app.get("/test/facts")
    async def facts() -> dict[str, Any]:
        assert isinstance(engine, EmbeddedEngine)
        return await engine.facts()

    @app.get("/test/pid")
    async def pid() -> dict[str, Any]:
        """State known to the API, even while the engine hangs. pending: number of pending requests to the engine."""
        state: dict[str, Any] = {"torch": "torch" in sys.modules}
        if isinstance(engine, VllmEngine):
            servers = engine.servers.items()
            return {
                **state,
                "urls": {str(base): str(server._http.base_url) for base, server in servers if server._http},
            }
        pending = len(engine._connection.inboxes) if engine._connection is not None else 0
        return {**state, "pid": engine.pid, "pending": pending}

    @app.post("/test/unload")
    async def unload(adapter: str) -> dict[str, Any]:
        await engine.unload(Path(adapter))
        return {}

    return app


def make_engine(config: dict[str, Any], settings: Settings) -> EmbeddedEngine | VllmEngine:
    """config: `vllm` contains VllmOptions, and optionally the `url` of an external server."""
    if "vllm" not in config:
        return EmbeddedEngine(EngineOptions(**config.get("options", {})))
    options = {**config["vllm"], "logs": settings.logs}
    url = options.pop("url", None)
    urls = dict.fromkeys(settings.bases.values(), url) if url else {}
    return VllmEngine(VllmOptions(**{**options, "command": tuple(options["command"])}), urls)


if __name__ == "__main__":
    app = make_app(json.loads(os.environ["MINIMAL_APP"]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")

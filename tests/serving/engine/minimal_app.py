"""The routes of inference over the embedded engine and nothing else, as a server process: started by `served`."""

import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from tunesmith.serving.engine.client import EmbeddedEngine, EngineOptions
from tunesmith.serving.engine.protocol import Target
from tunesmith.serving.errors import ApiError
from tunesmith.serving.routes import chat, completions
from tunesmith.serving.routes.generation import Inference


def make_app(config: dict[str, Any]) -> FastAPI:
    engine = EmbeddedEngine(EngineOptions(**config.get("options", {})))
    targets = {
        name: Target(Path(base), Path(adapter) if adapter else None)
        for name, (base, adapter) in config["models"].items()
    }

    async def find(_request: Request, model: str) -> Target:
        if model not in targets:
            raise ApiError(f"The model '{model}' does not exist", status=404, param="model", code="model_not_found")
        return targets[model]

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        app.state.inference = Inference(
            engine, find, lambda request: request.headers.get("authorization", ""), config.get("timeout_s", 120.0)
        )
        yield
        await engine.close()

    app = FastAPI(lifespan=lifespan)
    app.include_router(chat.router)
    app.include_router(completions.router)

    @app.exception_handler(ApiError)
    async def _told(_request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse(ApiError(f"{where}: {first['msg']}", param=where).body(), status_code=400)

    @app.get("/test/facts")
    async def facts() -> dict[str, Any]:
        return {"pid": engine.pid, **await engine.facts()}

    @app.get("/test/pid")
    async def pid() -> dict[str, Any]:
        return {"pid": engine.pid, "torch": "torch" in sys.modules}

    @app.post("/test/forget")
    async def forget(adapter: str) -> dict[str, Any]:
        await engine.forget(Path(adapter))
        return {}

    return app


if __name__ == "__main__":
    app = make_app(json.loads(os.environ["MINIMAL_APP"]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")

"""Routes that return typed objects: the response, and its OpenAPI description."""

from typing import TypedDict

from fastapi import APIRouter, FastAPI, Response
from fastapi.testclient import TestClient

from tunesmith.serving.app import ROUTERS
from tunesmith.serving.routes.object_route import ObjectRoute


class Thing(TypedDict):
    id: str
    size: int


def app_with(router: APIRouter) -> FastAPI:
    @router.get("/thing")
    def thing() -> Thing:
        return {"size": "large", "more": [1], "id": "a"}  # type: ignore[typeddict-item]

    @router.get("/bytes")
    def content() -> Response:
        return Response(b"abc", media_type="application/octet-stream")

    app = FastAPI()
    app.include_router(router)
    return app


def test_a_response_is_sent_as_returned():
    client = TestClient(app_with(APIRouter(prefix="/v1", route_class=ObjectRoute)))
    assert client.get("/v1/thing").text == '{"size":"large","more":[1],"id":"a"}'
    assert client.get("/v1/bytes").content == b"abc"


def test_openapi_describes_every_json_response_as_an_object():
    app = FastAPI()
    for router in ROUTERS:
        app.include_router(router)
    paths = app.openapi()["paths"]
    contents = {
        (path, method): operation["responses"]["200"]["content"]
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "content" in operation["responses"]["200"]
    }
    schemas = {
        key: content["application/json"]["schema"] for key, content in contents.items() if "application/json" in content
    }
    described = {key for key, schema in schemas.items() if schema}
    assert len(described) > 20
    for key in described:
        schema = {name: value for name, value in schemas[key].items() if name != "title"}
        assert schema == {"type": "object", "additionalProperties": True}, key

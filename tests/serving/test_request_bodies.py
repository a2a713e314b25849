"""Malformed bodies in every route: an error in the API's format with status 400, never a server error."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tunesmith.serving.app import create_app
from tunesmith.serving.middleware.asgi import Message
from tunesmith.serving.middleware.body_limits import BodyLimits
from tunesmith.serving.settings import Limits, Settings
from tunesmith.serving.store.store import Store

JSON = "application/json"
ERROR_KEYS = {"message", "type", "param", "code"}
BODIES = {
    "empty": b"",
    "no JSON": b"hello",
    "cut off": b'{"model": "tiny", "messages": [',
    "two values": b"{} {}",
    "trailing comma": b'{"model": "tiny",}',
    "deep lists": b"[" * 100_000,
    "deep closed lists": b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "NaN": b'{"model": NaN}',
    "infinity": b'{"seed": -Infinity}',
    "a number beyond floats": b'{"seed": 1e999}',
    "an integer with 5,000 digits": b'{"seed": ' + b"9" * 5_000 + b"}",
    "an integer beyond 64 bits": b'{"seed": 36893488147419103232, "bytes": 36893488147419103232}',
    "a lone surrogate": b'{"model": "\\ud800"}',
    "a lone surrogate as a key": b'{"\\udfff": 1}',
    "a null character": b'{"model": "\\u0000"}',
    "invalid UTF-8": b'{"model": "\xff\xfe"}',
    "invalid UTF-8 without letters": b'{"\xff": 1}',
    "an overlong form": b'{"model": "\xc0\x80"}',
    "UTF-16": '{"model": "tiny"}'.encode("utf-16"),
    "UTF-32": '{"model": "tiny"}'.encode("utf-32"),
    "a control character": b'{"model": "a\x01b"}',
    "a number": b"5",
    "a string": b'"text"',
    "null": b"null",
    "a list": b"[]",
    "true": b"true",
    "two equal keys": b'{"model": "tiny", "model": 5}',
}
TYPES = (JSON, "text/plain", "")


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[TestClient]:
    configuration = Settings.model_validate(
        {"home": tmp_path_factory.mktemp("home"), "limits": {"requests_per_minute": 10**6}}
    )
    store = Store(configuration.store_url)
    yield TestClient(create_app(configuration, store), base_url="http://localhost", raise_server_exceptions=False)
    store.close()


def posted(client: TestClient) -> list[str]:
    """The paths of all routes that take a POST, with ids that do not exist."""
    description = client.get("/openapi.json").json()
    paths = [
        path.replace("{", "").replace("}", "") for path, methods in description["paths"].items() if "post" in methods
    ]
    assert {"/v1/files", "/v1/chat/completions", "/v1/completions", "/v1/fine_tuning/jobs"} < set(paths)
    return paths


def require_api_error(response, *about: object) -> None:
    assert response.status_code in (400, 404), (*about, response.status_code, response.text[:300])
    assert set(response.json()) == {"error"}, about
    assert set(response.json()["error"]) == ERROR_KEYS, about
    assert response.headers["x-request-id"], about


@pytest.mark.parametrize("name", BODIES)
def test_malformed_bodies_get_an_api_error(client, name):
    for path in posted(client):
        for kind in TYPES:
            headers = {"Content-Type": kind} if kind else {}
            require_api_error(client.post(path, content=BODIES[name], headers=headers), path, kind)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["model", "messages", "prompt", "training_file", "method", "hyperparameters", "metadata", "seed", "suffix", "bytes",
     "filename", "mime_type", "purpose", "expires_after", "part_ids", "project_ids", "stop", "tools", "tool_choice",
     "response_format", "logit_bias", "stream_options", "n", "temperature", "user"]
)  # fmt: skip


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_values_of_other_types_get_an_api_error(client, body):
    for path in posted(client):
        response = client.post(path, content=json.dumps(body).encode(), headers={"Content-Type": JSON})
        assert response.status_code < 500 or response.json()["error"]["code"] == "engine_not_started", (path, body)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == ERROR_KEYS


FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="a.jsonl"\r\n\r\n{}\r\n'
FIELD = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
END = b"--b--\r\n"
FORMS = {
    "no boundary": ("multipart/form-data", PART % b"file" + END),
    "another boundary": ("multipart/form-data; boundary=c", PART % b"file" + END),
    "cut off": (FORM, PART % b"file"),
    "no name": (FORM, b"--b\r\nContent-Disposition: form-data\r\n\r\na\r\n" + END),
    "no disposition": (FORM, b"--b\r\nA: b\r\n\r\na\r\n" + END),
    "another field": (FORM, PART % b"other" + END),
    "invalid UTF-8": (FORM, FIELD % (b"purpose", b"\xff") + END),
    "a part header of 1 MB": (FORM, b"--b\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\na\r\n" + END),
    "a boundary of 10 KB": ("multipart/form-data; boundary=" + "b" * 10_000, b""),
    "JSON": (JSON, b"{}"),
}


@pytest.mark.parametrize("name", FORMS)
def test_malformed_forms_get_an_api_error(client, name):
    kind, body = FORMS[name]
    for path in ("/v1/files", "/v1/uploads/upload_none/parts"):
        require_api_error(client.post(path, content=body, headers={"Content-Type": kind}), path)


def test_the_response_to_a_complete_body_does_not_wait_for_the_client(tmp_path):
    """Only what the client is still sending is read before a rejection."""
    sent: list[Message] = []

    async def receive() -> Message:
        assert not sent
        if received.pop():
            return {"type": "http.request", "body": b'{"e": NaN}', "more_body": False}
        raise AssertionError("waits for the client")

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(*_: object) -> None:
        raise AssertionError("reached the routes")

    received = [False, True]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": "/v1/uploads", "headers": headers, "tunesmith.caller": None}
    asyncio.run(BodyLimits(app, Limits())(scope, receive, send))
    assert sent[0]["status"] == 400

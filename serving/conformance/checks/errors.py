"""All errors have the same shape: the default errors of web frameworks would break clients."""

import json
import urllib.error
import urllib.request
from typing import Any

from tunesmith.serving.conformance.bench import REQUEST_S, Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.outcome import Broken
from tunesmith.serving.conformance.shapes import expect_error


def _unknown_path(bench: Bench) -> None:
    expect_error(lambda: bench.strict.get("/no/such/thing", cast_to=object), 404)


def _wrong_method(bench: Bench) -> None:
    expect_error(lambda: bench.strict.patch("/fine_tuning/jobs", cast_to=object, body={}), (404, 405))
    expect_error(lambda: bench.strict.put("/files", cast_to=object, body={}), (404, 405))


def _wrong_types(bench: Bench) -> None:
    """Requests for which web frameworks return 422 and a different shape by default."""
    post = bench.strict.post
    chat: Any = {"model": bench.base, "messages": "hello"}
    job: Any = {"model": bench.base, "training_file": {"id": 5}}
    expect_error(lambda: post("/chat/completions", cast_to=object, body=chat))
    expect_error(lambda: post("/fine_tuning/jobs", cast_to=object, body=job))
    expect_error(lambda: post("/completions", cast_to=object, body={"model": bench.base, "prompt": {"a": 1}}))


def _missing(bench: Bench) -> None:
    post = bench.strict.post
    expect_error(lambda: post("/fine_tuning/jobs", cast_to=object, body={"model": bench.base}), param="training_file")
    expect_error(lambda: post("/fine_tuning/jobs", cast_to=object, body={"training_file": "file-x"}), param="model")
    expect_error(lambda: post("/chat/completions", cast_to=object, body={"model": bench.base}), param="messages")


def _query(bench: Bench) -> None:
    for path in ("/fine_tuning/jobs", "/files"):
        for limit in ("many", "0", "-1"):
            expect_error(lambda p=path, n=limit: bench.strict.get(f"{p}?limit={n}", cast_to=object))
    expect_error(lambda: bench.strict.fine_tuning.jobs.list(after="ftjob-thereisnosuchjobhere00").data, (400, 404))


def _not_json(bench: Bench) -> None:
    for body in (b"{", b"\xff\xfe", b"[]", b'"text"'):
        status, text = _raw(bench, "/fine_tuning/jobs", body)
        require_equal(status, 400, f"the status for the body {body!r}")
        try:
            inner = json.loads(text)["error"]
            require({"message", "type", "param", "code"} <= set(inner), f"the error is {inner}")
        except (ValueError, KeyError, TypeError):
            raise Broken(f"the error is not {{'error': {{...}}}}: {text[:200]!r}") from None


def _raw(bench: Bench, path: str, body: bytes) -> tuple[int, bytes]:
    """Send a raw body that the client would not produce."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {bench.key}"}
    request = urllib.request.Request(bench.url.rstrip("/") + path, body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


CHECKS = (
    Check(
        "errors: unknown path",
        "404; every error is {`error`: {message, type, param, code}}",
        _unknown_path,
    ),
    Check("errors: wrong method", "404 or 405 in the same shape", _wrong_method),
    Check("errors: wrong types", "400 in the same shape, not 422", _wrong_types),
    Check("errors: missing", "a missing parameter is named in `param`", _missing),
    Check("errors: query", "an invalid limit or cursor returns 400", _query),
    Check("errors: no JSON", "a body that is not a JSON object returns 400 in the same shape", _not_json),
)

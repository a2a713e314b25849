"""Errors have one shape, wherever they come from: the web framework's own would break clients."""

import json
import urllib.error
import urllib.request
from typing import Any

from tunesmith.serving.conformance.bench import REQUEST_S, Bench
from tunesmith.serving.conformance.check import Check, require, require_equal
from tunesmith.serving.conformance.outcome import Broken
from tunesmith.serving.conformance.shapes import refused


def _unknown_path(bench: Bench) -> None:
    refused(lambda: bench.strict.get("/no/such/thing", cast_to=object), 404)


def _wrong_method(bench: Bench) -> None:
    refused(lambda: bench.strict.patch("/fine_tuning/jobs", cast_to=object, body={}), (404, 405))
    refused(lambda: bench.strict.put("/files", cast_to=object, body={}), (404, 405))


def _wrong_types(bench: Bench) -> None:
    """What a framework would answer with 422 and a shape of its own."""
    post = bench.strict.post
    chat: Any = {"model": bench.base, "messages": "hello"}
    job: Any = {"model": bench.base, "training_file": {"id": 5}}
    refused(lambda: post("/chat/completions", cast_to=object, body=chat))
    refused(lambda: post("/fine_tuning/jobs", cast_to=object, body=job))
    refused(lambda: post("/completions", cast_to=object, body={"model": bench.base, "prompt": {"a": 1}}))


def _missing(bench: Bench) -> None:
    post = bench.strict.post
    refused(lambda: post("/fine_tuning/jobs", cast_to=object, body={"model": bench.base}), param="training_file")
    refused(lambda: post("/fine_tuning/jobs", cast_to=object, body={"training_file": "file-x"}), param="model")
    refused(lambda: post("/chat/completions", cast_to=object, body={"model": bench.base}), param="messages")


def _query(bench: Bench) -> None:
    for path in ("/fine_tuning/jobs", "/files"):
        for limit in ("many", "0", "-1"):
            refused(lambda p=path, n=limit: bench.strict.get(f"{p}?limit={n}", cast_to=object))
    refused(lambda: bench.strict.fine_tuning.jobs.list(after="ftjob-thereisnosuchjobhere00").data, (400, 404))


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
    """What the client would never send."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {bench.key}"}
    request = urllib.request.Request(bench.url.rstrip("/") + path, body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


CHECKS = (
    Check(
        "errors: unknown path", "every error is {`error`: {message, type, param, code}}: 404 of a path", _unknown_path
    ),
    Check("errors: wrong method", "the same of a method that a path does not have", _wrong_method),
    Check("errors: wrong types", "the same of a body of the wrong form: 400, never the framework's 422", _wrong_types),
    Check("errors: missing", "a parameter that is missing is named in `param`", _missing),
    Check("errors: query", "a limit or cursor that is none answers 400", _query),
    Check("errors: no JSON", "a body that is no JSON object answers 400 in the one shape", _not_json),
)

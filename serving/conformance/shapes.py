"""Validation of objects and errors against the models of the `openai` package."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from openai import APIStatusError, BaseModel
from pydantic import ValidationError

from tunesmith.serving.conformance.check import require
from tunesmith.serving.conformance.outcome import Broken, NotSupported
from tunesmith.serving.objects.error import ErrorDetails

NEWER_STATUSES = ("pausing", "paused")
"""Job statuses that the package's model does not list yet, although it has the calls that lead to them."""
RATE_LIMIT_RETRIES, MAX_RETRY_AFTER_S = 5, 10.0


def require_shape(item: BaseModel, required: Iterable[str] = ()) -> Mapping[str, object]:
    """Validate the types of all fields against the package's model, without coercion. Returns the object as sent.

    required: fields that must be present, possibly null, although the model makes them optional.
    """
    sent = item.to_dict(warnings=False)
    checked = {**sent, "status": "running"} if sent.get("status") in NEWER_STATUSES else sent
    try:
        type(item).model_validate_json(json.dumps(checked), strict=True)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in finding["loc"])
        raise Broken(f"{type(item).__name__}.{where}: {finding['msg']} (sent: {finding['input']!r:.120})") from None
    missing = [name for name in required if name not in sent]
    require(not missing, f"{type(item).__name__} has no {', '.join(missing)}")
    return sent


def expect_error(
    call: Callable[[], object],
    status: int | tuple[int, ...] = 400,
    *,
    code: str | None = None,
    param: str | None = None,
) -> APIStatusError:
    """Call the API with a client without retries. Returns the error.

    Raises Broken if the call succeeds, or if the status, code, param or shape of the error is wrong.
    """
    error = _error_of(call)
    expected = status if isinstance(status, tuple) else (status,)
    require(
        error.status_code in expected,
        f"status {error.status_code}, expected {' or '.join(map(str, expected))}: {error}",
    )
    body = require_error_shape(error)
    for name, sent, value in (("code", body["code"], code), ("param", body["param"], param)):
        if value is not None:
            require(sent == value, f"the error's {name} is {sent!r}, expected {value!r}: {body['message']}")
    return error


def require_error_shape(error: APIStatusError) -> ErrorDetails:
    """Validate an error response. Returns the inner object of `{"error": {"message", "type", "param", "code"}}`."""
    try:
        body = error.response.json()
    except ValueError:
        raise Broken(f"the error's body is not JSON: {error.response.text[:200]!r}") from None
    inner = body.get("error") if isinstance(body, dict) else None
    require(isinstance(inner, dict), f"the error is not {{'error': {{...}}}}: {json.dumps(body)[:200]}")
    assert isinstance(inner, dict)
    missing = [name for name in ("message", "type", "param", "code") if name not in inner]
    require(not missing, f"the error has no {', '.join(missing)}: {json.dumps(inner)[:200]}")
    require(isinstance(inner["message"], str) and inner["message"], f"the error's message is {inner['message']!r}")
    require(isinstance(inner["type"], str) and inner["type"], f"the error's type is {inner['type']!r}")
    for name in ("param", "code"):
        require(inner[name] is None or isinstance(inner[name], str), f"the error's {name} is {inner[name]!r}")
    return cast(ErrorDetails, inner)


def or_not_supported(call: Callable[[], Any]) -> Any:
    """Call an optional feature. Returns its result. Raises NotSupported with the server's message on status 400, 404 or
    501, and Broken if the shape of the error is wrong."""
    try:
        return call()
    except APIStatusError as error:
        if error.status_code not in (400, 404, 501):
            raise
        raise NotSupported(str(require_error_shape(error)["message"])) from None


def _error_of(call: Callable[[], object]) -> APIStatusError:
    for _ in range(RATE_LIMIT_RETRIES):
        try:
            result = call()
        except APIStatusError as error:
            if error.status_code != 429:
                return error
            time.sleep(min(float(error.response.headers.get("retry-after") or 1), MAX_RETRY_AFTER_S))
        else:
            raise Broken(f"the request was accepted: {result!r:.160}")
    raise Broken("status 429 on every attempt: the rate limit is too low for the check")

"""Objects and errors against the `openai` package's own models: what a field must be, the package says."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from openai import APIStatusError, BaseModel
from pydantic import ValidationError

from tunesmith.serving.conformance.check import require
from tunesmith.serving.conformance.outcome import Broken, NotSupported
from tunesmith.serving.objects.error import ErrorDetails

NEWER_STATES = ("pausing", "paused")
"""States of a job that the package's model does not name yet, though it has the calls that lead to them."""
RATE_TRIES, RATE_WAIT_S = 5, 10.0


def require_shape(thing: BaseModel, also: Iterable[str] = ()) -> Mapping[str, object]:
    """The object as it was sent, once every field has the type that the package's model gives it. Nothing is coerced.

    also: fields that must be there, with a value or null, though the model does without.
    """
    sent = thing.to_dict(warnings=False)
    checked = {**sent, "status": "running"} if sent.get("status") in NEWER_STATES else sent
    try:
        type(thing).model_validate_json(json.dumps(checked), strict=True)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in finding["loc"])
        raise Broken(f"{type(thing).__name__}.{where}: {finding['msg']} (sent: {finding['input']!r:.120})") from None
    missing = [name for name in also if name not in sent]
    require(not missing, f"{type(thing).__name__} has no {', '.join(missing)}")
    return sent


def refused(
    call: Callable[[], object],
    status: int | tuple[int, ...] = 400,
    *,
    code: str | None = None,
    param: str | None = None,
) -> APIStatusError:
    """The error that a call is answered with, once it is of the API's one shape. The call's client must not try again.

    Raises Broken where the call is accepted, or refused with another status, code or param.
    """
    error = _error_of(call)
    expected = status if isinstance(status, tuple) else (status,)
    require(
        error.status_code in expected, f"it answers {error.status_code}, not {' or '.join(map(str, expected))}: {error}"
    )
    body = require_error_shape(error)
    for name, sent, value in (("code", body["code"], code), ("param", body["param"], param)):
        if value is not None:
            require(sent == value, f"the error's {name} is {sent!r}, not {value!r}: {body['message']}")
    return error


def require_error_shape(error: APIStatusError) -> ErrorDetails:
    """The inner object of `{"error": {"message", "type", "param", "code"}}`."""
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
    """What a call gives. Raises NotSupported with the server's words where it says 400, 404 or 501 to something that
    the contract leaves to a server, and Broken where it says so in another shape."""
    try:
        return call()
    except APIStatusError as error:
        if error.status_code not in (400, 404, 501):
            raise
        raise NotSupported(str(require_error_shape(error)["message"])) from None


def _error_of(call: Callable[[], object]) -> APIStatusError:
    for _ in range(RATE_TRIES):
        try:
            answer = call()
        except APIStatusError as error:
            if error.status_code != 429:
                return error
            time.sleep(min(float(error.response.headers.get("retry-after") or 1), RATE_WAIT_S))
        else:
            raise Broken(f"it is accepted, and answered with {answer!r:.160}")
    raise Broken("it answers 429 again and again: the rate limit leaves no room for the check")

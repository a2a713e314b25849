"""Every refusal and every fault in the API's one shape, the framework's own as well."""

import logging
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from tunesmith.errors import InputError, TunesmithError
from tunesmith.serving.errors import ApiError

_log = logging.getLogger("tunesmith.serving")


def answer(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
    wait = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.body(), error.status, {**wait, **(headers or {})})


def install(app: FastAPI) -> None:
    """Give the app its handlers. What is raised outside of routes, `gate/audit.py` catches."""
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _by_framework)
    app.add_exception_handler(TunesmithError, _by_house)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(UnicodeEncodeError, _unstorable)


def unexpected(error: BaseException, where: str) -> ApiError:
    """A fault of the server: the log has the traceback, the caller an id to ask for."""
    fault = uuid.uuid4().hex[:12]
    _log.error("fault %s in %s", fault, where, exc_info=error)
    return ApiError(
        f"The server failed on this request. The server's log says more under the id {fault}.",
        status=500,
        type="server_error",
        code="internal_error",
    )


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer(error)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    message, param = invalid_request(error.errors(), error.body)
    return answer(ApiError(message, param=param))


def invalid_request(findings: Any, body: Any = None) -> tuple[str, str | None]:
    """(message, param) of pydantic's findings: the first is told, as the hosted API does. body: as parsed."""
    finding = findings[0]
    kind, where = str(finding["type"]), list(finding["loc"])
    if where and where[0] in ("body", "query", "path", "header", "cookie"):
        where = _within(body, where[1:], kind == "missing") if where[0] == "body" else where[1:]
    if kind == "json_invalid":
        return "The body of the request is not JSON", None
    named = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    if not named:
        return f"The body of the request is not what this route takes: {finding['msg']}", None
    if kind == "missing":
        return f"Missing required parameter: '{named}'", named
    if kind == "extra_forbidden":
        return f"Unknown parameter: '{named}'", named
    return f"Invalid value for '{named}': {finding['msg']}", named


def _within(body: Any, where: list[Any], is_missing: bool) -> list[Any]:
    """The part of a place that the caller wrote: pydantic adds the name of the kind that it tried, `prompt.str`."""
    written: list[Any] = []
    for part in where:
        there = part in body if isinstance(body, dict) else isinstance(body, list) and part in range(len(body))
        if there:
            body = body[part]
        elif not is_missing:
            break
        written.append(part)
    return written


async def _by_framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"Unknown request URL: {request.method} {request.url.path[:200]}"
        return answer(ApiError(message, status=404, code="unknown_url"))
    if error.status_code == 405:
        message = f"Not allowed for this URL: {request.method} {request.url.path[:200]}"
        return answer(ApiError(message, status=405, code="method_not_supported"), dict(error.headers or {}))
    return answer(ApiError(str(error.detail), status=error.status_code), dict(error.headers or {}))


async def _unstorable(_: Request, error: Exception) -> JSONResponse:
    return answer(ApiError("A value in the request cannot be stored: it holds a null character or is out of range"))


async def _by_house(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TunesmithError)
    if isinstance(error, InputError):
        return answer(ApiError(str(error)))
    return answer(unexpected(error, "a route"))

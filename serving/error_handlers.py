"""Exception handlers: every error, including the framework's own, is returned in the API's error format."""

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
from tunesmith.serving.store.faults import is_full, is_unavailable

RETRY_S = 2.0
"""`Retry-After` while the database is unavailable."""
_log = logging.getLogger("tunesmith.serving")


def error_response(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
    retry_after = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.body(), error.status, {**retry_after, **(headers or {})})


def install(app: FastAPI) -> None:
    """Register the handlers. Exceptions raised outside routes are caught by `middleware/audit.py`."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(TunesmithError, _tunesmith_error)
    app.add_exception_handler(DataError, _data_error)
    app.add_exception_handler(UnicodeEncodeError, _data_error)


def server_error(error: BaseException, where: str) -> ApiError:
    """The response to an unexpected exception. Those that pass without a change of the program are named."""
    if is_full(error):
        _log.error("no space left in %s: %s", where, error)
        message = "The server's disk is full. Delete files or models that are not needed, or ask its administrator."
        return ApiError(message, status=507, type="server_error", code="storage_full")
    if is_unavailable(error):
        _log.error("the database is unavailable in %s: %s", where, error)
        message = "The server's database is locked or unreachable. Please try again."
        return ApiError(message, status=503, type="server_error", code="storage_unavailable", retry_after_s=RETRY_S)
    return internal_error(error, where)


def internal_error(error: BaseException, where: str) -> ApiError:
    """Log an unexpected exception with its traceback; the 500 response carries the id of the log entry."""
    error_id = uuid.uuid4().hex[:12]
    _log.error("error %s in %s", error_id, where, exc_info=error)
    return ApiError(
        f"Internal server error. For details, search the server's log for {error_id}.",
        status=500,
        type="server_error",
        code="internal_error",
    )


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    message, param = invalid_request(error.errors(), error.body)
    return error_response(ApiError(message, param=param))


def invalid_request(findings: Any, body: Any = None) -> tuple[str, str | None]:
    """(message, param) of pydantic's first error; like the hosted API, only one is reported. body: as parsed."""
    finding = findings[0]
    kind, where = str(finding["type"]), list(finding["loc"])
    if where and where[0] in ("body", "query", "path", "header", "cookie"):
        where = _within(body, where[1:], kind == "missing") if where[0] == "body" else where[1:]
    if kind == "json_invalid":
        return "The request body is not valid JSON", None
    named = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    if not named:
        return f"Invalid request body: {finding['msg']}", None
    if kind == "missing":
        return f"Missing required parameter: '{named}'", named
    if kind == "extra_forbidden":
        return f"Unknown parameter: '{named}'", named
    return f"Invalid value for '{named}': {finding['msg']}", named


def _within(body: Any, where: list[Any], is_missing: bool) -> list[Any]:
    """The part of an error's location that exists in the body: pydantic appends the type it tried, `prompt.str`."""
    written: list[Any] = []
    for part in where:
        exists = part in body if isinstance(body, dict) else isinstance(body, list) and part in range(len(body))
        if exists:
            body = body[part]
        elif not is_missing:
            break
        written.append(part)
    return written


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"Unknown request URL: {request.method} {request.url.path[:200]}"
        return error_response(ApiError(message, status=404, code="unknown_url"))
    if error.status_code == 405:
        message = f"Not allowed for this URL: {request.method} {request.url.path[:200]}"
        return error_response(ApiError(message, status=405, code="method_not_supported"), dict(error.headers or {}))
    return error_response(ApiError(str(error.detail), status=error.status_code), dict(error.headers or {}))


async def _data_error(_: Request, error: Exception) -> JSONResponse:
    message = "A value in the request cannot be stored: it contains a null character or is out of range"
    return error_response(ApiError(message))


async def _tunesmith_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TunesmithError)
    if isinstance(error, InputError):
        return error_response(ApiError(str(error)))
    return error_response(internal_error(error, "a route"))

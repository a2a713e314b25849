"""The API's error object, the same for every refusal and every fault."""

from typing import TypedDict


class ErrorDetails(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: ErrorDetails

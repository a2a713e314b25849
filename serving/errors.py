"""The API's error format: `{"error": {"message", "type", "param", "code"}}`."""

from tunesmith.serving.objects.error import ErrorBody


class ApiError(Exception):
    """An error response, raised anywhere below a route.

    status: HTTP status. An illegal state change is a 400, because the client retries 408, 409, 429 and 5xx.
    code, param: as in the hosted API, or None. retry_after_s: `Retry-After` of a 429 or 503; the client waits that
    long before it retries.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.type, self.param, self.code = message, status, type, param, code
        self.retry_after_s = retry_after_s

    def body(self) -> ErrorBody:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

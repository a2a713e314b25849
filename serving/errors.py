"""The one shape in which the API says no: `{"error": {"message", "type", "param", "code"}}`."""

from tunesmith.serving.objects.error import ErrorBody


class ApiError(Exception):
    """Raised anywhere below a route; the app answers with it.

    status: of HTTP. A change of state that is not allowed is a 400, since the client tries 408, 409, 429 and 5xx again.
    code, param: as the hosted API has them, or None. retry_after_s: of a 429 or 503, which say when to come again; the
    client waits that long.
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

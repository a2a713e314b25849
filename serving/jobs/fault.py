"""Errors that fail a job, in the API's format: `{"code", "message", "param"}`."""

from tunesmith.serving.store.tables import JobError


class JobFault(Exception):
    """Fails a job. code, param: as in the hosted API; param is None if no parameter caused the error."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def as_json(self) -> JobError:
        return {"code": self.code, "message": self.message, "param": self.param}

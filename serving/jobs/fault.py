"""Errors that fail a job, in the API's format: `{"code", "message", "param"}`."""

from tunesmith.serving.store.tables import JobError


class JobFault(Exception):
    """Fails a job. code, param: as in the hosted API; param is None if no parameter caused the error."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def as_event(self) -> str:
        """The message as a sentence about the job; those in the words of the hosted API are one already."""
        return self.message if self.message.startswith("The job failed") else f"The job failed: {self.message}"

    def as_json(self) -> JobError:
        return {"code": self.code, "message": self.message, "param": self.param}

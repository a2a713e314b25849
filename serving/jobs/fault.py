"""Why a job failed, as the API tells it: `{"code", "message", "param"}`."""

from tunesmith.serving.store.tables import JobError


class JobFault(Exception):
    """Ends a job as failed. code, param: as the hosted API has them; param is None where no parameter is to blame."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def as_json(self) -> JobError:
        return {"code": self.code, "message": self.message, "param": self.param}

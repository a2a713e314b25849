"""Where a run was started (launch.json): lets `resume`, `logs` and `stop` reach it from anywhere."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tunesmith.errors import InputError
from tunesmith.rundir.atomic import write_text


@dataclass(frozen=True)
class Launch:
    """backend: a name from launcher/clusters.py. address: address of an existing cluster; empty if there is none or it
    was started for this run. job: ID of the cluster's job that works on the run; empty if the launcher itself does."""

    backend: str = "local"
    address: str = ""
    job: str = ""

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self)) + "\n")


def read_launch(path: Path) -> Launch:
    """Read launch.json; the default if the file does not exist. Unknown fields are ignored. Raises InputError for a
    damaged file rather than guess where to resume or stop a run."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
        return Launch(**{field.name: str(raw[field.name]) for field in fields(Launch) if field.name in raw})
    except (FileNotFoundError, NotADirectoryError):
        return Launch()
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"cannot read where the run was started: {error}",
            where=str(path),
            remedy="restore the file, or resume the run with --on BACKEND, which replaces it",
        ) from error


def launch_or_default(path: Path) -> Launch:
    """Like `read_launch`, for callers that only report on a run: a damaged file counts as missing."""
    try:
        return read_launch(path)
    except InputError:
        return Launch()

"""Where a run was started: what `resume`, `logs` and `stop` need to know to reach it from anywhere."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tunesmith.errors import InputError
from tunesmith.rundir.atomic import write_text


@dataclass(frozen=True)
class Launch:
    """backend: a name from launcher/clusters.py. address: of an existing cluster; empty: none, or one of the run's own.
    job: what the cluster calls the job that works on the run; empty where the launcher itself does."""

    backend: str = "local"
    address: str = ""
    job: str = ""

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self)) + "\n")


def read_launch(path: Path) -> Launch:
    """As last written; the default where there is none. Unknown fields are ignored. Raises InputError for a damaged
    file: where a run is started, resumed or stopped is not guessed."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it holds no object")
        return Launch(**{field.name: str(raw[field.name]) for field in fields(Launch) if field.name in raw})
    except (FileNotFoundError, NotADirectoryError):
        return Launch()
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"the record of where the run was started cannot be read: {error}",
            where=str(path),
            remedy="restore the file; or resume the run with --on and a back end, which replaces it",
        ) from error


def launch_or_default(path: Path) -> Launch:
    """The same for those who only report on a run: a damaged file counts as none."""
    try:
        return read_launch(path)
    except InputError:
        return Launch()

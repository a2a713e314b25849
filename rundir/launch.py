"""Where a run was started: what `resume`, `logs` and `stop` need to know to reach it from anywhere."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tunesmith.rundir.atomic import write_text

BACKENDS = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Launch:
    """backend: one of BACKENDS. address: of an existing Ray cluster; empty: none, or one of the run's own.
    job: what the cluster calls the job that works on the run; empty where the launcher itself does."""

    backend: str = "local"
    address: str = ""
    job: str = ""

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self)) + "\n")


def read_launch(path: Path) -> Launch:
    """As last written; the default where there is none or it is damaged. Unknown fields are ignored."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = Launch(**{field.name: str(raw[field.name]) for field in fields(Launch) if field.name in raw})
    except (OSError, ValueError, TypeError):
        return Launch()
    return found if found.backend in BACKENDS else Launch()

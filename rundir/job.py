"""What a run has to do with a batch system: what was submitted, and each time that a job of it started."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.json_lines import LineFile, read_lines
from tunesmith.rundir.paths import RunDir

STAGES = ("prepare", "train", "evaluate", "export")


@dataclass(frozen=True)
class JobRecord:
    """The recipe as it was when it was submitted: what is changed in its file later does not reach the job.

    cluster: the site's file, as values. stages: the batch job's number of each stage, in order. evaluate_data: the rows
    of the stage `evaluate`.
    """

    recipe_file: str
    recipe_text: str
    overrides: list[str]
    launcher: str
    cluster: dict[str, Any]
    evaluate_data: list[str] = field(default_factory=list)
    stages: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def read_job(run: RunDir) -> JobRecord | None:
    """None where nothing was submitted, or where the file is damaged. Unknown fields are ignored."""
    try:
        raw = json.loads(run.job.read_text(encoding="utf-8"))
        return JobRecord(**{f.name: raw[f.name] for f in fields(JobRecord) if f.name in raw})
    except (OSError, ValueError, TypeError):
        return None


def note_life(run: RunDir, **facts: Any) -> None:
    """Append that a job has started, and how far the run was then."""
    lines = LineFile(run.lives)
    lines.append({"kind": "life", **facts})
    lines.close()


def read_lives(run: RunDir, job_id: str) -> list[dict[str, Any]]:
    """The earlier starts of one job, in order."""
    lives = (line for line in read_lines(run.lives) if line.get("kind") == "life")
    return [life for life in lives if life.get("job") == job_id]

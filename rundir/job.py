"""What a run has to do with a batch system: what was submitted, and each time that a job of it started."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.json_lines import LineFile, read_lines
from tunesmith.rundir.paths import RunDir

STAGES = ("prepare", "train", "evaluate", "export")


@dataclass(frozen=True)
class JobRecord:
    """The recipe as it was when it was submitted: what is changed in its file later does not reach the job.

    settings: what the back end needs to submit the run again, by keys of its own; in the file they stand beside the
    others. evaluate_data: the rows of the stage `evaluate`. stages: the job's number of each stage, in order.
    """

    recipe_file: str
    recipe_text: str
    overrides: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    evaluate_data: list[str] = field(default_factory=list)
    stages: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        values: dict[str, Any] = {}
        for each in fields(self):
            values |= self.settings if each.name == "settings" else {each.name: getattr(self, each.name)}
        write_json(path, values)


def read_job(run: RunDir) -> JobRecord | None:
    """None where nothing was submitted, or where the file is damaged. Keys that are not of every back end are its
    settings."""
    try:
        raw = dict(json.loads(run.job.read_text(encoding="utf-8")))
        neutral = {each.name for each in fields(JobRecord)} - {"settings"}
        settings = {key: raw.pop(key) for key in list(raw) if key not in neutral}
        return JobRecord(**raw, settings=settings)
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

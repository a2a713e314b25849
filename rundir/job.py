"""Batch jobs of a run: what was submitted (job.json), and every start of a job (jobs/lives.jsonl)."""

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
    """The recipe at the time of submission: later changes to its file do not affect the job.

    settings: what the back end needs to submit the run again; written to the file at the same level as the other keys.
    evaluate_data: the rows of the stage `evaluate`. stages: the job ID of each stage, in order.
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
    """Read job.json; None if nothing was submitted or the file is damaged. Keys that are not fields of JobRecord become
    its settings."""
    try:
        raw = dict(json.loads(run.job.read_text(encoding="utf-8")))
        common = {each.name for each in fields(JobRecord)} - {"settings"}
        settings = {key: raw.pop(key) for key in list(raw) if key not in common}
        return JobRecord(**raw, settings=settings)
    except (OSError, ValueError, TypeError):
        return None


def record_job_start(run: RunDir, **facts: Any) -> None:
    """Append a start of a job, with the run's progress at that time."""
    lines = LineFile(run.job_starts)
    lines.append({"kind": "life", **facts})
    lines.close()


def read_job_starts(run: RunDir, job_id: str) -> list[dict[str, Any]]:
    """The recorded starts of one job, in order."""
    starts = (line for line in read_lines(run.job_starts) if line.get("kind") == "life")
    return [start for start in starts if start.get("job") == job_id]

"""The results of all classes: one JSON line per stage while they are computed, one JSON file at the end."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.launcher.hardware import count_cores

PACKAGES = ("torch", "transformers", "peft")


def environment() -> dict[str, Any]:
    """Return what the results depend on: versions and the kind of machine."""
    packages = {name: version(name) for name in PACKAGES}
    machine = {"python": platform.python_version(), "processor": _processor(), "cores": count_cores()[0]}
    return {"tunesmith": __version__, **packages, **machine}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


class Results:
    """Facts by class and stage. path: of the JSON file. keep: read the results of the same environment first."""

    def __init__(self, path: Path, environment: dict[str, Any], *, keep: bool):
        self.path, self.lines, self.environment = path, path.with_suffix(".jsonl"), environment
        self.classes: dict[str, dict[str, dict[str, Any]]] = {}
        if not keep:
            self.lines.unlink(missing_ok=True)
            return
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["environment"] == environment:
                self.classes = stored["classes"]
        self.reload()

    def reload(self) -> None:
        """Read the lines that this or other processes have written."""
        for line in self.lines.read_text(encoding="utf-8").splitlines() if self.lines.is_file() else ():
            entry = json.loads(line)
            if entry["environment"] == self.environment:
                self.classes.setdefault(entry["class"], {})[entry["stage"]] = entry["facts"]

    def of(self, name: str, stage: str) -> dict[str, Any] | None:
        return self.classes.get(name, {}).get(stage)

    def add(self, name: str, stage: str, facts: dict[str, Any], seconds: float) -> None:
        facts = {**facts, "seconds": round(seconds, 1)} if seconds else facts
        self.classes.setdefault(name, {})[stage] = facts
        entry = {"environment": self.environment, "class": name, "stage": stage, "facts": facts}
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write(self) -> None:
        """Write the JSON file, with a line per class, and remove the file of lines."""
        classes = ",\n".join(
            f"{json.dumps(name)}: {json.dumps(stages)}" for name, stages in sorted(self.classes.items())
        )
        content = f'{{"environment": {json.dumps(self.environment)},\n"classes": {{\n{classes}\n}}}}\n'
        self.path.write_text(content, encoding="utf-8")
        self.lines.unlink(missing_ok=True)

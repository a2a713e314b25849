"""Every path of a study, the directory of `tunesmith tune`. Its trials are run directories in it."""

from dataclasses import dataclass
from pathlib import Path

from tunesmith.rundir.paths import RunDir


@dataclass(frozen=True)
class StudyDir:
    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def definition(self) -> Path:
        """Recipe, overrides and search space of the study: a continued study must have the same."""
        return self.root / "study.json"

    @property
    def journal(self) -> Path:
        """Optuna's journal: values, intermediate values and state of every trial."""
        return self.root / "study.journal"

    @property
    def report(self) -> Path:
        return self.root / "tune.html"

    @property
    def best_recipe(self) -> Path:
        """The recipe with the values of the best trial."""
        return self.root / "best.yaml"

    def trial(self, number: int) -> RunDir:
        """The run of a trial. number: from 1."""
        return RunDir(self.root / f"trial-{number:04d}")

    def is_usable(self) -> bool:
        """Whether the directory is a study, or does not exist, or is empty but for a lock."""
        if self.definition.is_file() or self.journal.is_file() or not self.root.exists():
            return True
        return self.root.is_dir() and all(path.name == "run.lock" for path in self.root.iterdir())

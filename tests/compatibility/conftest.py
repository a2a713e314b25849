"""Files written by an earlier version, unpacked into a temporary directory, and the current commands to work on them.

Only the command line, HTTP and the modules called by scripts of that version are used, because these keep their names.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import cluster, pytest_runtest_teardown  # noqa: F401
from tests.warm_processes.pool import command_line, python_path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
MODULE = "tunesmith.cli.main" if (ROOT / "cli" / "main.py").is_file() else "tunesmith.launcher.cli"
COMMAND = (sys.executable, "-P", "-m", MODULE)


@dataclass
class Project:
    """The directory of a user of the earlier version. environment: variables in addition to those of the tests."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def all_environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": python_path(ROOT), "TUNESMITH_CACHE": str(self.directory / "cache")}
        return {**os.environ, **self.environment, **own}

    @property
    def facts(self) -> dict[str, Any]:
        """Facts that the script that created the fixture recorded for the tests."""
        return json.loads((self.directory / "facts.json").read_text(encoding="utf-8"))

    def run(self, *arguments: str | Path, code: int = 0, within: Path | None = None) -> str:
        """Return standard output of a command. within: the working directory; None: the project."""
        ended = subprocess.run(
            command_line(COMMAND, *arguments),
            cwd=within or self.directory,
            env=self.all_environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout

    def json(self, *arguments: str | Path, within: Path | None = None) -> Any:
        return json.loads(self.run(*arguments, "--json", within=within))

    def replace(self, changes: dict[str, str]) -> None:
        """Replace texts in all files that no manifest covers, in all file names, and in the server's database."""
        for path in sorted(self.directory.rglob("*"), reverse=True):
            name = path.name
            for old, new in changes.items():
                name = name.replace(old, new)
            path.rename(path.with_name(name))
        for path in unsealed_texts(self.directory):
            text = path.read_text(encoding="utf-8")
            for old, new in changes.items():
                text = text.replace(old, new)
            path.write_text(text, encoding="utf-8")
        for path in self.directory.rglob("*.sqlite3"):
            replace_in_store(path, changes)


def unsealed_texts(directory: Path) -> Iterator[Path]:
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        folders = [folder for folder in path.parents if folder.is_relative_to(directory)]
        if not any((folder / "manifest.json").is_file() for folder in folders) and b"\0" not in path.read_bytes():
            yield path


def replace_in_store(path: Path, changes: dict[str, str]) -> None:
    """Replace texts in all text columns of an SQLite database."""
    with closing(sqlite3.connect(path)) as store, store:
        tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in store.execute(f'PRAGMA table_info("{table}")').fetchall():
                if kind.startswith(("TEXT", "VARCHAR", "JSON")):
                    for old, new in changes.items():
                        update = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?)'
                        store.execute(f'{update} WHERE instr("{column}", ?)', (old, new, old))


@pytest.fixture
def unpack(tmp_path) -> Callable[..., Project]:
    """unpack(version, name) -> Project with all paths changed to its current location."""

    def unpacked(version: str, name: str, **environment: str) -> Project:
        return unpack_to(tmp_path, version, name, environment)

    return unpacked


def unpack_to(place: Path, version: str, name: str, environment: dict[str, str]) -> Project:
    with tarfile.open(FIXTURES / version / f"{name}.tar.gz") as archive:
        archive.extractall(place, filter="data")
    project = Project(place / name, environment)
    former = f"/tmp/tunesmith-{version}/{name}"
    project.replace({former: str(project.directory), "@CHECKOUT@": str(ROOT), "@PYTHON@": sys.executable})
    return project


def move(run: Path, to: Path) -> Path:
    to.parent.mkdir(parents=True)
    return Path(shutil.move(run, to))

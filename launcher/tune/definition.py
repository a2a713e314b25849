"""What a study searches (study.json): recipe, search space and objective, compared when the study is continued."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.search_space import space_as_json
from tunesmith.configs.tune import TuneFile
from tunesmith.errors import InputError
from tunesmith.launcher.planning.prepare_run import Request
from tunesmith.launcher.runs.compatibility import differences
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.lock import run_lock
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.study import StudyDir

_NEW_STUDY = "undo the change to continue this study, or start a new one with another --study"


@dataclass(frozen=True)
class Definition:
    """launch: where the trials are started unless a command says otherwise; its job is empty."""

    recipe: Recipe
    space: list[dict[str, Any]]
    objective: str
    steps_per_trial: int | None
    launch: Launch

    def write(self, path: Path) -> None:
        write_json(
            path,
            {
                "recipe": self.recipe.model_dump(mode="json"),
                "space": self.space,
                "objective": self.objective,
                "steps_per_trial": self.steps_per_trial,
                "backend": self.launch.backend,
                "address": self.launch.address,
            },
        )


def define(request: Request, tune_file: TuneFile, launch: Launch) -> Definition:
    tune = tune_file.tune
    space = space_as_json(tune_file.dimensions)
    where = Launch(launch.backend, launch.address)
    return Definition(request.recipe, space, tune.objective, tune.steps_per_trial, where)


def read_definition(study: StudyDir) -> Definition | None:
    """Read study.json; None if the study does not exist. Raises InputError if it is damaged."""
    try:
        raw = json.loads(study.definition.read_text(encoding="utf-8"))
        recipe = Recipe.model_validate_json(json.dumps(raw["recipe"]), strict=True)
        launch = Launch(raw["backend"], raw["address"])
        return Definition(recipe, raw["space"], raw["objective"], raw["steps_per_trial"], launch)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(
            f"study.json is damaged or from another version: {str(error).splitlines()[0]}",
            where=str(study.definition),
            remedy="restore it, or start a new study with another --study",
        ) from None


def require_same(old: Definition, new: Definition, study: StudyDir) -> None:
    """Raise InputError if a study is continued with another recipe, search space or objective: its trials could not be
    compared."""
    changed = differences(old.recipe, new.recipe)
    for name in ("objective", "steps_per_trial"):
        if getattr(old, name) != getattr(new, name):
            changed.append(f"{name}: {getattr(old, name)} -> {getattr(new, name)}")
    before, after = ({each["key"]: each for each in one.space} for one in (old, new))
    changed += [f"search.{key}" for key in {**before, **after} if before.get(key) != after.get(key)]
    if changed:
        raise InputError(
            "the study has a different recipe or search space:\n" + "\n".join(f"  {line}" for line in changed),
            where=str(study.root),
            remedy=_NEW_STUDY,
        )


@contextmanager
def study_lock(study: StudyDir) -> Iterator[None]:
    """Hold the study's lock: one command at a time continues it. Raises InputError if another one does, or if the
    directory contains something else."""
    if not study.is_usable():
        what = "the directory exists and is not a study"
        raise InputError(what, where=str(study.root), remedy="choose another directory with --study")
    lock = run_lock(RunDir(study.root))
    try:
        lock.__enter__()
    except InputError as error:
        if not isinstance(error.__cause__, BlockingIOError):
            raise
        raise InputError(
            "another command is working on this study",
            where=str(study.root),
            remedy=f"wait for it, or follow its trials: tunesmith status {study.root}",
        ) from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)

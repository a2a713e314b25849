"""Opens the study of a `tunesmith tune` command: reads the files, checks them and takes the study's lock."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.configs.tune import TUNE_FILE, NoPruner, load_tune
from tunesmith.launcher.backends.cluster import SubmitOptions
from tunesmith.launcher.clusters import cluster_named, require_options
from tunesmith.launcher.planning.prepare_run import read_request
from tunesmith.launcher.runs.find import default_run_dir
from tunesmith.launcher.runs.remote import chosen_launch
from tunesmith.launcher.tune.definition import define, read_definition, require_same, study_lock
from tunesmith.launcher.tune.search import Search
from tunesmith.launcher.tune.study import Study, require_optuna
from tunesmith.rundir.paths import require_possible
from tunesmith.rundir.study import StudyDir


@dataclass(frozen=True)
class SearchArguments:
    """Arguments of the command; None: not given."""

    recipe: Path
    space: Path | None
    study: Path | None
    overrides: tuple[str, ...]
    on: str | None
    address: str | None
    cluster: str | None
    launcher: str | None


@contextmanager
def open_search(arguments: SearchArguments, print_line: Callable[[str], None]) -> Iterator[tuple[Search, Study]]:
    """Create or continue a study; the block holds its lock. Raises InputError."""
    require_optuna()
    request = read_request(arguments.recipe, arguments.overrides)
    space = arguments.space or arguments.recipe.parent / TUNE_FILE
    tune_file = load_tune(space, request.text, str(arguments.recipe), arguments.overrides)
    directory = StudyDir(arguments.study or default_run_dir(f"{request.recipe.name}-tune"))
    require_possible(directory.trial(1).root, "choose a shorter --study")
    before = read_definition(directory)
    on, address = arguments.on, arguments.address
    if before is not None and on is None and address is None:
        on, address = before.launch.backend, before.launch.address or None
    launch = chosen_launch(directory.trial(1), on or ("local" if address is None else None), address)
    cluster = cluster_named(launch.backend)
    options = SubmitOptions(arguments.cluster, arguments.launcher)
    require_options(cluster, options)
    definition = define(request, tune_file, launch)
    every_steps = request.recipe.evaluation.every_steps
    if every_steps is None and not isinstance(tune_file.tune.pruner, NoPruner):
        print_line("no trial is pruned: evaluation.every_steps is not set in the recipe")
    with study_lock(directory):
        search = Search(directory, request, tune_file, cluster, launch, options)
        study = Study(directory.journal, tune_file, every_steps)
        if before is not None and study.trials():
            require_same(before, definition, directory)
        definition.write(directory.definition)
        yield search, study

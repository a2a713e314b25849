"""Checks that the recipe itself can be trained, before a trial is recorded: what fails every trial is no result."""

from tunesmith.launcher.backends.cluster import Submission
from tunesmith.launcher.clusters import open_backend
from tunesmith.launcher.planning.prepare_run import find_model, prepare_rows
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.tune.search import Search
from tunesmith.rundir.launch import Launch
from tunesmith.tracking.trackers import require_installed


def require_ready(search: Search, progress: Progress) -> None:
    """Raise InputError if the cluster file is missing, or here the model, the rows or a package of the recipe.

    Where jobs prepare the rows themselves, only the cluster is checked. Otherwise the rows are prepared once, into the
    cache, instead of by the first trials at the same time.
    """
    request = search.request
    trial = search.directory.trial(1)
    search.cluster.check(Submission(trial, search.launch, (), request, options=search.options))
    if search.cluster.takes_over(search.launch):
        return
    require_installed(request.recipe.tracking)
    model = find_model(request.recipe, request.directory)
    with open_backend(Launch()) as backend:
        prepare_rows(request.recipe, model, request.directory, None, progress.preparing, backend)
    progress.close()

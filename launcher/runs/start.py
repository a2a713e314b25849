"""The way of a run from the launcher's side: make it or take it up again, start the workers, follow, report."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith.configs.plan import DataFacts, ModelFacts, Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.errors import ExitCode, InputError
from tunesmith.launcher.attempts import is_finished, next_attempt, patient_lock, stored_plan
from tunesmith.launcher.backends.base import Backend
from tunesmith.launcher.clusters import open_backend
from tunesmith.launcher.planning.placement import placed_anew
from tunesmith.launcher.planning.prepare_run import (
    OnProgress,
    Request,
    find_model,
    plan_of,
    prepare_rows,
    sources_are_gone,
)
from tunesmith.launcher.planning.world import max_restarts
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.runs.compatibility import differences, require_same_data, require_same_model
from tunesmith.launcher.runs.launch_checks import require_device, require_disk, require_usable
from tunesmith.launcher.signals import on_signals
from tunesmith.rundir.atomic import write_bytes, write_text
from tunesmith.rundir.commit import verify
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, read_status


def train(request: Request, run: RunDir, progress: Progress, launch: Launch) -> ExitCode:
    """Make the run and train it; a run that is there already is gone on with, where nothing has changed.

    launch: where it is trained.

    Returns DONE or PREEMPTED. Raises InputError for bad input, or where the run there is another one; RunFault where
    the run fails.
    """
    require_usable(run)
    with open_backend(launch) as backend:
        if run.exists:
            return _train_again(request, run, progress, launch, backend)
        model = find_model(request.recipe, request.directory)
        with patient_lock(run, progress.say) as lock_fd:
            run.create()
            launch.write(run.launch)
            run.stop_request.unlink(missing_ok=True)
            try:
                with _preparing(run) as told:
                    write_text(run.recipe, _recipe_text(request))
                    data = prepare_rows(request.recipe, model, request.directory, run, told(progress), backend)
                    plan = plan_of(request, model, data, backend)
                    require_disk(plan, run.root)
                    plan.write(run.plan)
            except _Stopped:
                run.stop_request.unlink(missing_ok=True)
                progress.say("stopped while preparing: the same command goes on from there")
                return ExitCode.PREEMPTED
            return _run_workers(run, plan, 1, lock_fd, progress, backend)


def prepare(request: Request, run: RunDir, progress: Progress) -> DataFacts | None:
    """Only prepare the rows, on this machine: what `train` then finds in the cache. None where it was asked to stop."""
    require_usable(run)
    model = find_model(request.recipe, request.directory)
    with patient_lock(run, progress.say), open_backend(Launch()) as backend:
        if run.exists:
            return prepare_rows(request.recipe, model, request.directory, None, progress.preparing, backend)
        run.create()
        try:
            with _preparing(run) as told:
                data = prepare_rows(request.recipe, model, request.directory, run, told(progress), backend)
        except _Stopped:
            return None
        Status("queued").write(run.status)
        return data


def resume(run: RunDir, progress: Progress, launch: Launch, overrides: Sequence[str] = ()) -> ExitCode:
    """Go on with a run from its newest whole checkpoint, also elsewhere than before.

    overrides: of the keys that say where and how divided it is trained. Raises InputError where model or data have
    changed, or an override is of another key.
    """
    require_usable(run)
    with open_backend(launch) as backend, patient_lock(run, progress.say) as lock_fd:
        plan = stored_plan(run)
        recipe = placed_anew(plan.recipe, overrides)
        if is_finished(run):
            return _say_finished(run, progress)
        return _go_on(run, plan, recipe, lock_fd, progress, launch, backend)


def _train_again(request: Request, run: RunDir, progress: Progress, launch: Launch, backend: Backend) -> ExitCode:
    with patient_lock(run, progress.say) as lock_fd:
        plan = stored_plan(run)
        if changed := differences(plan.recipe, request.recipe):
            raise InputError(
                "the run that is here has another recipe:\n" + "\n".join(f"  {line}" for line in changed),
                where=str(run.root),
                remedy="choose another --run-dir for the new recipe, or take the changes back to go on with this run",
            )
        if is_finished(run):
            require_same_model(plan, find_model(request.recipe, request.directory))
            data = prepare_rows(request.recipe, plan.model, request.directory, None, progress.preparing, backend)
            require_same_data(plan, data)
            return _say_finished(run, progress)
        return _go_on(run, plan, request.recipe, lock_fd, progress, launch, backend)


def _go_on(
    run: RunDir, plan: Plan, recipe: Recipe, lock_fd: int, progress: Progress, launch: Launch, backend: Backend
) -> ExitCode:
    """Check that model and data are those of the plan, remake what was lost of the cache, start the workers.

    recipe: the plan's, but perhaps with other processes or another division of the model.
    """
    attempt = next_attempt(run)
    run.stop_request.unlink(missing_ok=True)
    progress.say(f"going on with the run in {run.root} (attempt {attempt})")
    run.create()
    recipe_dir = Path(plan.recipe_file).parent if plan.recipe_file else Path.cwd()
    with _checking(run, plan, attempt):
        require_device(plan, backend)
        model = find_model(plan.recipe, recipe_dir)
        require_same_model(plan, model)
        data = _rows_again(plan, model, recipe_dir, progress, backend)
        require_same_data(plan, data)
        if recipe != plan.recipe:
            plan = plan_of(Request(Path(plan.recipe_file), "", (), recipe), model, data, backend)
        elif (model, data) != (plan.model, plan.data):  # the cache lies elsewhere now
            plan = plan.model_copy(update={"model": model, "data": data})
        require_disk(plan, run.root)
    plan.write(run.plan)
    launch.write(run.launch)
    return _run_workers(run, plan, attempt, lock_fd, progress, backend)


@contextmanager
def _checking(run: RunDir, plan: Plan, attempt: int) -> Iterator[None]:
    """The status says that somebody works on the run; where that is refused, what it said before stands again."""
    before = run.status.read_bytes() if run.status.is_file() else None
    _say_preparing(run, plan, attempt)
    try:
        yield
    except BaseException:
        if before is None:
            run.status.unlink(missing_ok=True)
        else:
            write_bytes(run.status, before)
        raise


def _say_preparing(run: RunDir, plan: Plan, attempt: int) -> None:
    earlier = read_status(run.status)
    step = earlier.step if earlier else 0
    Status("preparing", step, plan.batch.total_steps, attempt, started=time.time()).write(run.status)


def _rows_again(plan: Plan, model: ModelFacts, recipe_dir: Path, progress: Progress, backend: Backend) -> DataFacts:
    """The rows as they are now; where their files are gone, those that the plan prepared, if they are whole."""
    try:
        return prepare_rows(plan.recipe, model, recipe_dir, None, progress.preparing, backend)
    except InputError:
        if not sources_are_gone(plan.recipe, recipe_dir) or verify(Path(plan.data.train.index).parent) is not None:
            raise
        progress.say("the files of the rows are gone, but the prepared rows are whole: going on with these")
        return plan.data


def _run_workers(run: RunDir, plan: Plan, attempt: int, lock_fd: int, progress: Progress, backend: Backend) -> ExitCode:
    """Workers that were lost are started again as often as the recipe allows, from the newest checkpoint."""
    restarts = 0 if backend.restarts else max_restarts(plan.recipe, plan.compute.world_size)
    while True:
        _say_preparing(run, plan, attempt)
        with progress.following(run, plan):
            ending = backend.run(run, plan, attempt, lock_fd, progress.poll, progress.asked)
        if not ending.lost or not restarts or run.stop_request.exists():
            break
        restarts -= 1
        attempt = next_attempt(run)
        progress.say(f"{ending.error.what if ending.error else 'lost'}: starting again (attempt {attempt})", "yellow")
    run.stop_request.unlink(missing_ok=True)
    make_report(run, progress)
    if ending.error is not None:
        raise ending.error
    if ending.exit_code == ExitCode.PREEMPTED:
        progress.say(f"stopped, and the state is saved. `tunesmith resume {run.root}` goes on from there")
    return ending.exit_code


def make_report(run: RunDir, progress: Progress) -> None:
    """Write report.html; a run that went well does not fail for its report."""
    from tunesmith.report.page import write_report

    try:
        write_report(run)
    except Exception as error:
        progress.say(f"the report could not be written: {error}. Try again: tunesmith report {run.root}")


def _say_finished(run: RunDir, progress: Progress) -> ExitCode:
    progress.say(f"the run in {run.root} is finished: nothing is trained again")
    if not run.export.is_dir():
        progress.say(f"its export is not there: tunesmith export {run.root}")
    return ExitCode.DONE


class _Stopped(BaseException):
    """SIGTERM or SIGUSR2 while preparing."""


@contextmanager
def _preparing(run: RunDir) -> Iterator[Callable[[Progress], OnProgress]]:
    """Status while the launcher itself works; what goes wrong is written down and raised on.

    Yields what makes a progress that also looks for a request to stop.
    """
    run.events.unlink(missing_ok=True)  # of a try that never got as far as a plan
    status = Status("preparing", attempt=1, started=time.time())
    status.write(run.status)

    def stop() -> None:
        raise _Stopped

    def told(progress: Progress) -> OnProgress:
        def tell(stage: str, done: int, total: int) -> None:
            if run.stop_request.exists():
                stop()
            progress.preparing(stage, done, total)

        return tell

    with on_signals(stop, (signal.SIGTERM, signal.SIGUSR2)):
        try:
            yield told
        except BaseException as error:
            stopped = isinstance(error, _Stopped)
            record_end(run, status.attempt, None if stopped else error, has_begun=False)
            raise


def _recipe_text(request: Request) -> str:
    """The recipe as written; overrides follow as comments, since plan.json holds what they came to."""
    if not request.overrides:
        return request.text
    notes = "".join(f"# --set {override}\n" for override in request.overrides)
    return f"{request.text.rstrip()}\n\n# Overridden on the command line:\n{notes}"

"""Starts runs: create or resume a run, start its workers, follow them and write the report."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith.configs.plan import DataFacts, ModelFacts, Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.data.index.integrity import check_data
from tunesmith.errors import ExitCode, InputError
from tunesmith.launcher.attempts import is_finished, next_attempt, stored_plan, wait_for_lock
from tunesmith.launcher.backends.base import Backend
from tunesmith.launcher.clusters import open_backend
from tunesmith.launcher.exit_status import Ending
from tunesmith.launcher.measured_runs import record_measured
from tunesmith.launcher.planning.placement import with_placement
from tunesmith.launcher.planning.prepare_run import (
    OnProgress,
    Request,
    find_model,
    plan_of,
    prepare_rows,
    prepared_by_earlier_version,
    sources_are_missing,
)
from tunesmith.launcher.planning.world import max_restarts
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.runs.compatibility import differences, has_same_tokens, require_same_data, require_same_model
from tunesmith.launcher.runs.halving import halve_micro_batch
from tunesmith.launcher.runs.launch_checks import require_device, require_disk, require_usable
from tunesmith.launcher.runs.tracking import Trackers, tracking
from tunesmith.launcher.signals import on_signals
from tunesmith.rundir.atomic import write_bytes, write_text
from tunesmith.rundir.commit import verify
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.fence import claim, loss_of, require_present
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, read_status
from tunesmith.tracking.trackers import require_installed


def train(request: Request, run: RunDir, progress: Progress, launch: Launch) -> ExitCode:
    """Create and train a run, or resume an existing run if nothing has changed.

    launch: where it is trained.

    Returns DONE or PREEMPTED. Raises InputError for invalid input or if the directory contains another run, RunFault if
    the run fails.
    """
    require_usable(run)
    require_installed(request.recipe.tracking)
    with open_backend(launch) as backend:
        if run.exists:
            return _train_again(request, run, progress, launch, backend)
        model = find_model(request.recipe, request.directory)
        with wait_for_lock(run, progress.print) as lock_fd:
            run.create()
            run = claim(run)
            launch.write(run.launch)
            run.stop_request.unlink(missing_ok=True)
            try:
                with _preparing(run) as stoppable:
                    write_text(run.recipe, _recipe_text(request))
                    data = prepare_rows(request.recipe, model, request.directory, run, stoppable(progress), backend)
                    plan = plan_of(request, model, data, backend)
                    require_disk(plan, run.root)
                    require_present(run)
                    plan.write(run.plan)
            except _Stopped:
                run.stop_request.unlink(missing_ok=True)
                progress.print("stopped while preparing; run the same command again to continue")
                return ExitCode.PREEMPTED
            return _run_workers(run, plan, 1, lock_fd, progress, backend)


def prepare(request: Request, run: RunDir, progress: Progress) -> DataFacts | None:
    """Only prepare the rows, on this machine, so that `train` finds them in the cache. None if stopped."""
    require_usable(run)
    model = find_model(request.recipe, request.directory)
    with wait_for_lock(run, progress.print), open_backend(Launch()) as backend:
        if run.exists:
            return prepare_rows(request.recipe, model, request.directory, None, progress.preparing, backend)
        run.create()
        run = claim(run)
        try:
            with _preparing(run) as stoppable:
                data = prepare_rows(request.recipe, model, request.directory, run, stoppable(progress), backend)
        except _Stopped:
            return None
        Status("queued").write(run.status)
        return data


def resume(run: RunDir, progress: Progress, launch: Launch, overrides: Sequence[str] = ()) -> ExitCode:
    """Resume a run from its newest valid checkpoint, possibly on another back end.

    overrides: keys of placement and sharding. Raises InputError if model or data have changed, or for an override of
    another key.
    """
    require_usable(run)
    with open_backend(launch) as backend, wait_for_lock(run, progress.print) as lock_fd:
        plan = stored_plan(run)
        recipe = with_placement(plan.recipe, overrides)
        require_installed(recipe.tracking)
        if is_finished(run):
            return _report_finished(run, progress)
        return _resume(run, plan, recipe, lock_fd, progress, launch, backend)


def _train_again(request: Request, run: RunDir, progress: Progress, launch: Launch, backend: Backend) -> ExitCode:
    with wait_for_lock(run, progress.print) as lock_fd:
        plan = stored_plan(run)
        if changed := differences(plan.recipe, request.recipe):
            raise InputError(
                "the existing run has a different recipe:\n" + "\n".join(f"  {line}" for line in changed),
                where=str(run.root),
                remedy="choose another --run-dir for the new recipe, or undo the changes to resume this run",
            )
        if is_finished(run):
            require_same_model(plan, find_model(request.recipe, request.directory))
            data = _rows_again(plan, plan.model, request.directory, progress, backend)
            require_same_data(plan, data)
            return _report_finished(run, progress)
        return _resume(run, plan, request.recipe, lock_fd, progress, launch, backend)


def _resume(
    run: RunDir, plan: Plan, recipe: Recipe, lock_fd: int, progress: Progress, launch: Launch, backend: Backend
) -> ExitCode:
    """Check that model and data match the plan, restore what is missing in the cache, and start the workers.

    recipe: that of the plan, possibly with other processes or another sharding.
    """
    attempt = next_attempt(run)
    run.stop_request.unlink(missing_ok=True)
    progress.print(f"resuming the run in {run.root} (attempt {attempt})")
    run.create()
    run = claim(run)
    recipe_dir = Path(plan.recipe_file).parent if plan.recipe_file else Path.cwd()
    with _checking(run, plan, attempt):
        require_device(plan, backend)
        model = find_model(plan.recipe, recipe_dir)
        require_same_model(plan, model)
        data = _rows_again(plan, model, recipe_dir, progress, backend)
        require_same_data(plan, data)
        if recipe != plan.recipe:
            plan = plan_of(Request(Path(plan.recipe_file), "", (), recipe), model, data, backend, earlier=plan)
        elif (model, data) != (plan.model, plan.data):  # the cache has moved
            plan = plan.model_copy(update={"model": model, "data": data})
        require_disk(plan, run.root)
        require_present(run)
    plan.write(run.plan)
    launch.write(run.launch)
    return _run_workers(run, plan, attempt, lock_fd, progress, backend)


@contextmanager
def _checking(run: RunDir, plan: Plan, attempt: int) -> Iterator[None]:
    """Set the status to `preparing` for the block; if the block raises, restore the previous status. Raises RunLost if
    the run directory is no longer that of the run."""
    before = run.status.read_bytes() if run.status.is_file() else None
    _set_preparing(run, plan, attempt)
    try:
        yield
    except BaseException as error:
        if (lost := loss_of(run)) is not None:
            raise lost from error
        if before is None:
            run.status.unlink(missing_ok=True)
        else:
            write_bytes(run.status, before)
        raise


def _set_preparing(run: RunDir, plan: Plan, attempt: int) -> None:
    earlier = read_status(run.status)
    step = earlier.step if earlier else 0
    Status("preparing", step, plan.batch.total_steps, attempt, started=time.time()).write(run.status)


def _rows_again(plan: Plan, model: ModelFacts, recipe_dir: Path, progress: Progress, backend: Backend) -> DataFacts:
    """Prepare the rows again, unless they are intact; if their files are missing, or if an earlier version prepared
    them, use the prepared rows of the plan if they verify. Damage is reported: it may be that of a disk."""
    if faults := check_data(plan).faults:
        progress.print(f"the prepared data was damaged and is prepared again: {faults[0]}", "yellow")
    error = data = None
    try:
        date = plan.data.rendered_on
        data = prepare_rows(plan.recipe, model, recipe_dir, None, progress.preparing, backend, date)
    except InputError as raised:
        error = raised
    if data is not None and data.fingerprint == plan.data.fingerprint:
        return data
    is_intact = verify(Path(plan.data.train.index).parent) is None
    if is_intact and error is not None and sources_are_missing(plan.recipe, recipe_dir):
        progress.print("the data files are missing; using the prepared rows, which are intact")
        return plan.data
    if prepared_by_earlier_version(plan.recipe, model, recipe_dir, plan.data.fingerprint):
        if is_intact:
            progress.print("an earlier version prepared the rows; the run continues with them")
            return plan.data
        if data is not None and has_same_tokens(plan.data, data):
            progress.print(
                "an earlier version prepared the rows; they are prepared again, with as many tokens in each split"
            )
            return data.model_copy(update={"fingerprint": plan.data.fingerprint})
    if error is not None:
        raise error
    assert data is not None
    return data


def _run_workers(run: RunDir, plan: Plan, attempt: int, lock_fd: int, progress: Progress, backend: Backend) -> ExitCode:
    """Run the workers; restart lost ones from the newest checkpoint as often as the recipe allows, and with half the
    micro-batch as often as memory runs out.

    Raises RunLost if the run directory was deleted or replaced: what is at its path says nothing about this run.
    """
    with tracking(run, [options.kind for options in plan.recipe.tracking], progress.print) as trackers:
        ending = _last_ending(run, plan, attempt, lock_fd, progress, backend, trackers)
        run.stop_request.unlink(missing_ok=True)
        make_report(run, progress)
    if ending.exit_code == ExitCode.DONE and not backend.several_nodes:  # trained on this machine
        record_measured(run, stored_plan(run))
    if ending.error is not None:
        raise ending.error
    if ending.exit_code == ExitCode.PREEMPTED:
        progress.print(f"stopped, and the state is saved: `tunesmith resume {run.root}` continues it")
    return ending.exit_code


def _last_ending(
    run: RunDir,
    plan: Plan,
    attempt: int,
    lock_fd: int,
    progress: Progress,
    backend: Backend,
    trackers: Trackers,
) -> Ending:
    restarts = 0 if backend.restarts else max_restarts(plan.recipe, plan.compute.world_size)
    while True:
        _set_preparing(run, plan, attempt)
        with progress.following(run, plan):
            ending = _ending_of(run, plan, attempt, lock_fd, progress, backend, trackers)
        if run.stop_request.exists():
            return ending
        cause = ending.error.what if ending.error else "workers were lost"
        if ending.out_of_memory:
            plan, cause = halve_micro_batch(run, cause)
        elif ending.lost and restarts:
            restarts -= 1
        else:
            return ending
        attempt = next_attempt(run)
        progress.print(f"{cause}; restarting (attempt {attempt})", "yellow")


def _ending_of(
    run: RunDir,
    plan: Plan,
    attempt: int,
    lock_fd: int,
    progress: Progress,
    backend: Backend,
    trackers: Trackers,
) -> Ending:
    """Run the workers once. Raises RunLost, with the new path of a directory that was renamed."""

    def watch() -> None:
        if loss_of(run) is None:  # otherwise the events are those of another run
            progress.poll()
            trackers.poll()

    try:
        return backend.run(run, plan, attempt, lock_fd, watch, progress.stop_requested)
    finally:
        if (lost := loss_of(run)) is not None:
            lock = Path(os.readlink(f"/proc/self/fd/{lock_fd}"))
            if lock.is_file() and lock.parent != run.root.resolve():
                lost.where = f"{run.root}, renamed to {lock.parent}"
                lost.remedy = f"continue the run from its newest checkpoint: tunesmith resume {lock.parent}"
            raise lost


def make_report(run: RunDir, progress: Progress) -> None:
    """Write report.html; an error here does not fail the run."""
    from tunesmith.report.page import write_report

    try:
        write_report(run)
    except Exception as error:
        progress.print(f"the report could not be written: {error}; try again with `tunesmith report {run.root}`")


def _report_finished(run: RunDir, progress: Progress) -> ExitCode:
    progress.print(f"the run in {run.root} is already finished; nothing to train")
    if not run.export.is_dir():
        progress.print(f"its export is missing; create it with `tunesmith export {run.root}`")
    return ExitCode.DONE


class _Stopped(BaseException):
    """SIGTERM or SIGUSR2 while preparing."""


@contextmanager
def _preparing(run: RunDir) -> Iterator[Callable[[Progress], OnProgress]]:
    """Maintain the status while the launcher prepares data; record and re-raise errors.

    Yields a function that wraps a Progress so that it also checks for a stop request.
    """
    run.events.unlink(missing_ok=True)  # left by an attempt that failed before it had a plan
    status = Status("preparing", attempt=1, started=time.time())
    status.write(run.status)

    def stop() -> None:
        raise _Stopped

    def stoppable(progress: Progress) -> OnProgress:
        def on_progress(stage: str, done: int, total: int) -> None:
            if run.stop_request.exists():
                stop()
            progress.preparing(stage, done, total)

        return on_progress

    with on_signals(stop, (signal.SIGTERM, signal.SIGUSR2)):
        try:
            yield stoppable
        except BaseException as error:
            if (lost := loss_of(run)) is not None:
                raise lost from error
            stopped = isinstance(error, _Stopped)
            record_end(run, status.attempt, None if stopped else error, has_begun=False)
            raise


def _recipe_text(request: Request) -> str:
    """The recipe as written, with overrides appended as comments; plan.json contains the resulting recipe."""
    if not request.overrides:
        return request.text
    notes = "".join(f"# --set {override}\n" for override in request.overrides)
    return f"{request.text.rstrip()}\n\n# Overridden on the command line:\n{notes}"

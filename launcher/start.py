"""The way of a run from the launcher's side: make it or take it up again, start the workers, follow, report."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.errors import ExitCode, InputError, TunesmithError
from tunesmith.launcher.local import run_local
from tunesmith.launcher.preflight import require_device, require_disk, require_usable
from tunesmith.launcher.prepare import Request, find_model, plan_of, prepare_rows
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.same import differences, require_same_data, require_same_model
from tunesmith.report.record import read_record
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.events import EventLog, read_events
from tunesmith.rundir.lock import run_lock
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, read_status

ORPHAN_WAIT_S = 120.0
"""How long to wait for a worker that saves after its launcher was killed."""


@dataclass(frozen=True)
class Result:
    """How a call ended. trained: whether workers ran in it."""

    exit_code: ExitCode
    trained: bool


def train(request: Request, run: RunDir, progress: Progress) -> Result:
    """Make the run and train it; a run that is there already is gone on with, where nothing has changed.

    Raises InputError for bad input, or where the run there is another one; RunFault where the run fails.
    """
    require_usable(run)
    if run.exists:
        return _train_again(request, run, progress)
    model = find_model(request.recipe, request.directory)
    with _lock(run, progress) as lock_fd:
        run.create()
        try:
            with _preparing(run):
                write_text(run.recipe, _recipe_text(request))
                data = prepare_rows(request.recipe, model, request.directory, run, progress.preparing)
                plan = plan_of(request, model, data)
                require_disk(plan, run.root)
                plan.write(run.plan)
        except _Stopped:
            progress.say("stopped while preparing: the same command goes on from there")
            return Result(ExitCode.PREEMPTED, trained=False)
        return _run_workers(run, plan, 1, lock_fd, progress)


def resume(run: RunDir, progress: Progress) -> Result:
    """Go on with a run from its newest whole checkpoint. Raises InputError where model or data have changed."""
    require_usable(run)
    with _lock(run, progress) as lock_fd:
        plan = stored_plan(run)
        if _is_finished(run):
            return _say_finished(run, progress)
        return _go_on(run, plan, lock_fd, progress)


def stored_plan(run: RunDir) -> Plan:
    """The plan of a run that was made before. Raises InputError where it is missing or damaged."""
    try:
        return read_plan(run.plan)
    except OSError:
        raise InputError(
            "the run has no plan: it was never started", where=str(run.root), remedy="start it: tunesmith train RECIPE"
        ) from None
    except ValidationError as error:
        raise InputError(
            f"plan.json is damaged or of another version ({error.error_count()} fields do not fit)",
            where=str(run.plan),
            remedy="restore it, or start a new run with another --run-dir",
        ) from None


def next_attempt(run: RunDir) -> int:
    """The number after the highest that any trace of an earlier attempt has."""
    status = read_status(run.status)
    numbers = [status.attempt if status else 0]
    numbers += [int(event.get("attempt") or 0) for event in read_events(run.events, "start")]
    numbers += [int(path.name.split("-")[1]) for path in run.logs.glob("attempt-[0-9][0-9][0-9]-rank-*.log")]
    return max(numbers) + 1


def _train_again(request: Request, run: RunDir, progress: Progress) -> Result:
    with _lock(run, progress) as lock_fd:
        plan = stored_plan(run)
        if changed := differences(plan.recipe, request.recipe):
            raise InputError(
                "the run that is here has another recipe:\n" + "\n".join(f"  {line}" for line in changed),
                where=str(run.root),
                remedy="choose another --run-dir for the new recipe, or take the changes back to go on with this run",
            )
        if _is_finished(run):
            require_same_model(plan, find_model(request.recipe, request.directory))
            data = prepare_rows(request.recipe, plan.model, request.directory, None, progress.preparing)
            require_same_data(plan, data)
            return _say_finished(run, progress)
        return _go_on(run, plan, lock_fd, progress)


def _go_on(run: RunDir, plan: Plan, lock_fd: int, progress: Progress) -> Result:
    """Check that model and data are those of the plan, remake what was lost of the cache, start the workers."""
    attempt = next_attempt(run)
    progress.say(f"going on with the run in {run.root} (attempt {attempt})")
    run.create()
    recipe_dir = Path(plan.recipe_file).parent if plan.recipe_file else Path.cwd()
    require_device(plan)
    model = find_model(plan.recipe, recipe_dir)
    require_same_model(plan, model)
    data = prepare_rows(plan.recipe, model, recipe_dir, None, progress.preparing)
    require_same_data(plan, data)
    if (model, data) != (plan.model, plan.data):  # the cache lies elsewhere now
        plan = plan.model_copy(update={"model": model, "data": data})
        plan.write(run.plan)
    require_disk(plan, run.root)
    return _run_workers(run, plan, attempt, lock_fd, progress)


def _run_workers(run: RunDir, plan: Plan, attempt: int, lock_fd: int, progress: Progress) -> Result:
    earlier = read_status(run.status)
    step = earlier.step if earlier else 0
    Status("preparing", step, plan.batch.total_steps, attempt, started=time.time()).write(run.status)
    with progress.following(run, plan):
        ending = run_local(run, plan, attempt, lock_fd, progress.poll, progress.asked)
    make_report(run, progress)
    if ending.error is not None:
        raise ending.error
    if ending.exit_code == ExitCode.PREEMPTED:
        progress.say(f"stopped, and the state is saved. `tunesmith resume {run.root}` goes on from there")
    return Result(ending.exit_code, trained=True)


def make_report(run: RunDir, progress: Progress) -> None:
    """Write report.html; a run that went well does not fail for its report."""
    from tunesmith.report.page import write_report

    try:
        write_report(run)
    except Exception as error:
        progress.say(f"the report could not be written: {error}. Try again: tunesmith report {run.root}")


def _is_finished(run: RunDir) -> bool:
    status = read_status(run.status)
    if status is not None and status.phase not in ("done", "early_stopped"):
        return False
    return read_record(run).is_finished


def _say_finished(run: RunDir, progress: Progress) -> Result:
    progress.say(f"the run in {run.root} is finished: nothing is trained again")
    if not run.export.is_dir():
        progress.say(f"its export is not there: tunesmith export {run.root}")
    return Result(ExitCode.DONE, trained=False)


@contextmanager
def _lock(run: RunDir, progress: Progress) -> Iterator[int]:
    """Hold the run's lock. A worker whose launcher was killed keeps it while it saves: that is waited for."""
    deadline = time.monotonic() + ORPHAN_WAIT_S
    told = False
    while True:
        lock = run_lock(run)
        try:
            fd = lock.__enter__()
            break
        except InputError:
            if _holder_lives(run) or time.monotonic() > deadline:
                raise
        if not told:
            progress.say("an earlier process of this run is still saving; waiting for it")
            told = True
        time.sleep(0.2)
    try:
        yield fd
    finally:
        lock.__exit__(None, None, None)


def _holder_lives(run: RunDir) -> bool:
    """Whether the launcher that took the lock is alive; without a readable pid: yes."""
    try:
        os.kill(int(run.lock.read_text(encoding="ascii")), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):
        return True
    return True


class _Stopped(BaseException):
    """SIGTERM or SIGUSR2 while preparing."""


@contextmanager
def _preparing(run: RunDir) -> Iterator[None]:
    """Status while the launcher itself works; what goes wrong is written down and raised on."""
    run.events.unlink(missing_ok=True)  # of a try that never got as far as a plan
    status = Status("preparing", attempt=1, started=time.time())
    status.write(run.status)

    def stop(number: int, frame: object) -> None:
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield
    except BaseException as error:
        _note_failure(run, status, error)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _note_failure(run: RunDir, status: Status, error: BaseException) -> None:
    try:
        if isinstance(error, TunesmithError):
            log = EventLog(run.events)
            log.write("error", what=error.what, where=error.where, remedy=error.remedy)
            log.close()
        code = error.exit_code if isinstance(error, TunesmithError) else ExitCode.FAULT
        stopped = isinstance(error, _Stopped)
        status.phase, status.exit_code = ("preempted", ExitCode.PREEMPTED) if stopped else ("failed", int(code))
        status.write(run.status)
    except OSError:
        pass  # the disk may be what failed; the message on the terminal still tells


def _recipe_text(request: Request) -> str:
    """The recipe as written; overrides follow as comments, since plan.json holds what they came to."""
    if not request.overrides:
        return request.text
    notes = "".join(f"# --set {override}\n" for override in request.overrides)
    return f"{request.text.rstrip()}\n\n# Overridden on the command line:\n{notes}"

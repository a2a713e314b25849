"""How the workers of a run ended: the exit code, and the cause if one of them failed."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ExitCode, InputError, OutOfMemory, RunFault, TunesmithError
from tunesmith.os_errors import free_space, is_full
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import ErrorEvent
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.resume_point import resume_point
from tunesmith.rundir.status import FINAL, read_status

TAIL_LINES = 8
TAIL_BYTES = 16 << 10
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|MemoryError|Cannot allocate memory", re.IGNORECASE)
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_SIGNAL_TEXTS = {
    signal.SIGKILL: "was killed",
    signal.SIGTERM: "was terminated",
    signal.SIGSEGV: "crashed with a segmentation fault",
    signal.SIGBUS: "crashed with a bus error (a truncated file or a failed disk)",
    signal.SIGABRT: "was aborted by a library",
    signal.SIGILL: "executed an instruction that this CPU does not support",
    signal.SIGFPE: "crashed with an arithmetic error",
}


@dataclass(frozen=True)
class Ending:
    """error: the error to report if the run neither finished nor was preempted. lost: a worker was killed or lost with
    its machine and none reported an error, so restarting the workers may succeed. out_of_memory: a worker reported that
    memory ran out and that its micro-batch can be halved."""

    exit_code: ExitCode
    error: TunesmithError | None = None
    lost: bool = False
    out_of_memory: bool = False


def ending_of(
    run: RunDir,
    attempt: int,
    codes: list[int],
    *,
    first_failed: list[tuple[int, int]] | None = None,
    stop_requested: bool,
    oom_kills: int,
) -> Ending:
    """Determine from the exit codes by rank how the workers ended.

    stop_requested: whether a stop was requested. oom_kills: out-of-memory kills in the meantime.
    first_failed: rank and code of those that failed before the others were terminated.

    Writes the cause into events and status for a worker that could not report it.
    """
    bad = [(rank, code) for rank, code in enumerate(codes) if code not in (ExitCode.DONE, ExitCode.PREEMPTED)]
    if not bad:
        return Ending(ExitCode.PREEMPTED if ExitCode.PREEMPTED in codes else ExitCode.DONE)
    if (code := _recorded_code(run, attempt)) in (ExitCode.DONE, ExitCode.PREEMPTED):
        # Everything was completed and written; the interpreter crashed during shutdown.
        return Ending(ExitCode(code))
    if stop_requested and all(code == -signal.SIGTERM for _, code in bad):
        # The signal arrived while the worker was still importing: nothing had started, nothing is lost.
        record_end(run, attempt, None)
        return Ending(ExitCode.PREEMPTED)
    # A worker that exited because another one failed got SIGTERM or lost its connection: it is considered last.
    rank, code = min(first_failed or bad, key=lambda item: (item[1] in (-signal.SIGTERM, ExitCode.FAULT), item[0]))
    killed = code < 0 and code != -signal.SIGTERM
    recorded = _recorded_error(run, attempt)
    out_of_memory = recorded is not None and recorded.code == OutOfMemory.CODE
    # If a worker was killed, any other error that another one recorded is only its lost connection.
    if recorded is not None and (out_of_memory or not (killed and len(codes) > 1)):
        return Ending(ExitCode(recorded.exit_code), recorded, out_of_memory=out_of_memory and not stop_requested)
    error = _worker_error(run, attempt, rank, code, oom_kills)
    record_end(run, attempt, error)
    return Ending(ExitCode.FAULT, error, lost=killed and not stop_requested)


def log_tail(path: Path, num_lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a process's output; empty if there are none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip()[:200] for line in text.splitlines() if line.strip()][-num_lines:]


def _recorded_code(run: RunDir, attempt: int) -> int | None:
    """The exit code that rank 0 recorded at the end of this attempt; None if it did not get that far."""
    status = read_status(run.status)
    return status.exit_code if status and status.phase in FINAL and status.attempt == attempt else None


def _recorded_error(run: RunDir, attempt: int) -> TunesmithError | None:
    """The error that the worker reported in this attempt."""
    code = _recorded_code(run, attempt)
    if code not in (ExitCode.FAULT, ExitCode.BAD_INPUT):
        return None
    errors = list(read_events(run.events, ErrorEvent))
    if not errors:
        return None
    kind = InputError if code == ExitCode.BAD_INPUT else RunFault
    error = errors[-1]
    return kind(str(error.what), where=error.where, remedy=error.remedy, code=error.code)


def _worker_error(run: RunDir, attempt: int, rank: int, code: int, oom_kills: int) -> RunFault:
    log = run.log(attempt, rank)
    tail = log_tail(log)
    remedy = f"`tunesmith resume {run.root}` continues from {resume_point(run)}"
    worker = "the worker" if rank == 0 else f"the worker of rank {rank}"
    if (code == -signal.SIGKILL and oom_kills > 0) or any(_OUT_OF_MEMORY.search(line) for line in tail):
        what = f"{worker} ran out of memory"
        if code < 0:
            what += f": the kernel killed {oom_kills} process{'es' if oom_kills > 1 else ''} (OOM killer, SIGKILL)"
        remedy = f"close other programs, or start a new run with a smaller optimization.micro_batch_size; {remedy}"
    elif code < 0:
        number = signal.Signals(-code)
        what = f"{worker} {_SIGNAL_TEXTS.get(number, 'was terminated')} ({number.name})"
        if number == signal.SIGKILL:
            what += " by a user, a batch system, or the OOM killer of the kernel (which counted no kill)"
    elif any(_DISK_FULL.search(line) for line in tail) or is_full(run.root):
        # The worker cannot write the reason: neither to the run directory nor to its log.
        what = f"the disk is full: {worker} exited with code {code}"
        remedy = f"free space there; {remedy}"
        return RunFault(what, where=f"{run.root}{free_space(run.root)}", remedy=remedy)
    else:
        what = f"{worker} exited with code {code} without reporting an error"
    where = str(log) + "".join(f"\n              | {line}" for line in tail)
    return RunFault(what, where=where, remedy=remedy)

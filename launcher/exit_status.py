"""How the workers of a run ended: the exit code, and the cause of death where one did not end by itself."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ExitCode, InputError, RunFault, TunesmithError
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import ErrorEvent
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.paths import RunDir, step_of
from tunesmith.rundir.status import FINAL, read_status

TAIL_LINES = 8
TAIL_BYTES = 16 << 10
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|MemoryError|Cannot allocate memory", re.IGNORECASE)
_SIGNAL_WORDS = {
    signal.SIGKILL: "was killed",
    signal.SIGTERM: "was ended",
    signal.SIGSEGV: "crashed with a memory fault",
    signal.SIGBUS: "crashed reading a file that was cut short or a disk that failed",
    signal.SIGABRT: "was aborted by a library",
    signal.SIGILL: "met an instruction that this CPU lacks",
    signal.SIGFPE: "crashed in arithmetic",
}


@dataclass(frozen=True)
class Ending:
    """error: what to tell the user where the run neither finished nor was preempted. lost: a worker was killed or lost
    with its machine, none told of a fault of the run: started again, it may well come to its end."""

    exit_code: ExitCode
    error: TunesmithError | None = None
    lost: bool = False


def how_it_ended(
    run: RunDir,
    attempt: int,
    codes: list[int],
    *,
    first_dead: list[tuple[int, int]] | None = None,
    asked: bool,
    oom_kills: int,
) -> Ending:
    """From the exit codes by rank. asked: the workers had been asked to end. oom_kills: by the kernel in the meantime.
    first_dead: rank and code of those that failed before the others were told to end.

    A worker that could not say why it died has its cause written into events and status here.
    """
    bad = [(rank, code) for rank, code in enumerate(codes) if code not in (ExitCode.DONE, ExitCode.PREEMPTED)]
    if not bad:
        return Ending(ExitCode.PREEMPTED if ExitCode.PREEMPTED in codes else ExitCode.DONE)
    if (code := _recorded_code(run, attempt)) in (ExitCode.DONE, ExitCode.PREEMPTED):
        # Everything was done and written; what died was the interpreter taking itself apart.
        return Ending(ExitCode(code))
    if asked and all(code == -signal.SIGTERM for _, code in bad):
        # The signal came while the worker was still importing: nothing had begun, nothing is lost.
        record_end(run, attempt, None)
        return Ending(ExitCode.PREEMPTED)
    # A worker that another one's death brought down died of SIGTERM, or of its connection: it comes last.
    rank, code = min(first_dead or bad, key=lambda item: (item[1] in (-signal.SIGTERM, ExitCode.FAULT), item[0]))
    killed = code < 0 and code != -signal.SIGTERM
    # Where one was killed, what another recorded is that its connection broke.
    if not (killed and len(codes) > 1) and (recorded := _recorded_error(run, attempt)) is not None:
        return Ending(ExitCode(recorded.exit_code), recorded)
    error = _cause_of_death(run, attempt, rank, code, oom_kills)
    record_end(run, attempt, error)
    return Ending(ExitCode.FAULT, error, lost=killed and not asked)


def log_tail(path: Path, num_lines: int = TAIL_LINES) -> list[str]:
    """The last lines that a process printed; empty where there are none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip()[:200] for line in text.splitlines() if line.strip()][-num_lines:]


def _recorded_code(run: RunDir, attempt: int) -> int | None:
    """The exit code that rank 0 recorded at the end of this attempt; None where it did not get that far."""
    status = read_status(run.status)
    return status.exit_code if status and status.phase in FINAL and status.attempt == attempt else None


def _recorded_error(run: RunDir, attempt: int) -> TunesmithError | None:
    """The error that the worker itself reported in this attempt."""
    code = _recorded_code(run, attempt)
    if code not in (ExitCode.FAULT, ExitCode.BAD_INPUT):
        return None
    errors = list(read_events(run.events, ErrorEvent))
    if not errors:
        return None
    kind = InputError if code == ExitCode.BAD_INPUT else RunFault
    return kind(str(errors[-1].what), where=errors[-1].where, remedy=errors[-1].remedy)


def _cause_of_death(run: RunDir, attempt: int, rank: int, code: int, oom_kills: int) -> RunFault:
    log = run.log(attempt, rank)
    tail = log_tail(log)
    remedy = f"`tunesmith resume {run.root}` goes on from {_last_checkpoint(run)}"
    who = "the worker" if rank == 0 else f"the worker of rank {rank}"
    if (code == -signal.SIGKILL and oom_kills > 0) or any(_OUT_OF_MEMORY.search(line) for line in tail):
        how = f"{who} ran out of memory"
        if code < 0:
            how += f": the kernel killed {oom_kills} process{'es' if oom_kills > 1 else ''} for want of it (SIGKILL)"
        remedy = f"close other programs, or start anew with a smaller optimization.micro_batch_size; {remedy}"
    elif code < 0:
        number = signal.Signals(-code)
        how = f"{who} {_SIGNAL_WORDS.get(number, 'was ended')} ({number.name})"
        if number == signal.SIGKILL:
            how += ": by hand, by a batch system, or by the kernel for want of memory (it counted none)"
    else:
        how = f"{who} ended with exit code {code} without a word"
    where = str(log) + "".join(f"\n              | {line}" for line in tail)
    return RunFault(how, where=where, remedy=remedy)


def _last_checkpoint(run: RunDir) -> str:
    steps = [step for path in run.checkpoints.glob("step-*") if (step := step_of(path)) is not None]
    return f"the checkpoint of step {max(steps)}" if steps else "the start, since there is no checkpoint yet"

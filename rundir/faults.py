"""Faults that tests inject into the processes of a run, by the variable TUNESMITH_FAULT."""

import os
import signal
import time
from pathlib import Path
from types import FrameType

_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
_fault_counts: dict[str, int] = {}
_terms: list[int] = []
"""SIGTERMs that were handled, for the fault `await_term`."""


def fault_point(stage: str) -> None:
    """Inject a fault in a test: TUNESMITH_FAULT="<stage>[:<nth call>][@<rank>]=<action>", or several, separated by
    commas. action: kill, term, stop, hang, await_term, raise or oom. rank: only in the process with this RANK.

    stop: send SIGSTOP to the process. hang: block until the file named by TUNESMITH_FAULT_UNTIL exists (forever if
    unset; if that is a directory, the file `<stage>[:<nth call>]` in it); a file of that name with `.reached` appended
    shows that the process hangs. await_term: block until SIGTERM was handled, also before, since the first call of this
    stage. oom: raise MemoryError, once for that file, which is created (if unset, each time). No cost when unset.
    """
    faults = os.environ.get("TUNESMITH_FAULT")
    if not faults:
        return
    actions = _actions_here(faults)
    if not any(name.partition(":")[0] == stage for name in actions):
        return
    _fault_counts[stage] = number = _fault_counts.get(stage, 0) + 1
    if any(name.partition(":")[0] == stage and action == "await_term" for name, action in actions.items()):
        _record_term()
    for name in (stage, f"{stage}:{number}") if number == 1 else (f"{stage}:{number}",):
        if name in actions:
            _inject(name, actions[name])


def _actions_here(faults: str) -> dict[str, str]:
    """Actions by `<stage>[:<nth call>]`, without those of other ranks."""
    actions = {}
    for name, _, action in (fault.partition("=") for fault in faults.split(",")):
        place, _, rank = name.partition("@")
        if rank in ("", os.environ.get("RANK", "0")):
            actions[place] = action
    return actions


def _inject(name: str, action: str) -> None:
    if action == "raise":
        raise OSError(28, "No space left on device (injected)", name.partition(":")[0])
    if action == "oom":
        _run_out_of_memory(name)
    elif action == "hang":
        _hang(name)
    elif action == "await_term":
        _await_term()
    else:
        os.kill(os.getpid(), _SIGNALS[action])


def _run_out_of_memory(name: str) -> None:
    once = _until(name)
    if once and os.path.exists(once):
        return
    if once:
        Path(once).touch()
    raise MemoryError(f"out of memory (injected at {name})")


def _until(name: str) -> str:
    """The file of a fault, from TUNESMITH_FAULT_UNTIL; empty if unset."""
    until = os.environ.get("TUNESMITH_FAULT_UNTIL", "")
    return os.path.join(until, name) if os.path.isdir(until) else until


def _hang(name: str) -> None:
    until = _until(name)
    if until:
        Path(f"{until}.reached").touch()
    while not until or not os.path.exists(until):
        time.sleep(0.05)


def _await_term() -> None:
    """Block the main thread until SIGTERM was handled; not at all if it was since the first call of this stage."""
    _record_term()
    while not _terms:
        time.sleep(0.05)


def _record_term() -> None:
    """Record every SIGTERM that the installed handler handles: one that arrives just before the wait counts, too."""
    handler = signal.getsignal(signal.SIGTERM)
    if getattr(handler, "records", False):
        return

    def receive(number: int, frame: FrameType | None) -> None:
        _terms.append(number)
        if callable(handler):
            handler(number, frame)

    receive.records = True  # type: ignore[attr-defined] (a mark of the function)
    signal.signal(signal.SIGTERM, receive)


def fault_value(stage: str, value: str) -> str:
    """Return `value`, or the replacement of a test: TUNESMITH_FAULT="<stage>=<value>". No cost when unset."""
    fault = os.environ.get("TUNESMITH_FAULT")
    if fault and fault.startswith(f"{stage}="):
        return fault.partition("=")[2]
    return value

"""Preflight check of a distributed run: all ranks must see the same run directory and plan, with the same software.

Ranks exchange facts through the rendezvous store, since a rank that does not see the run directory cannot read the plan
either. Rank 0 compares them and broadcasts the verdict, so that all ranks report the same error.
"""

import hashlib
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NotRequired, TypedDict

from tunesmith import __version__
from tunesmith.configs.plan import Plan, read_plan
from tunesmith.errors import ExitCode, InputError, RunFault, TunesmithError
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.faults import fault_point, fault_value
from tunesmith.rundir.paths import RunDir, step_of
from tunesmith.training.distributed.fatal import terminate
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.distributed.rendezvous import Rendezvous

CLOCK_SLACK_S = 5.0
"""Maximum clock skew: beyond it a heartbeat looks stale and events are out of order."""
_PACKAGES: tuple[str, ...] = ("torch", "transformers", "peft")
_READ_AGAIN_S = 5.0
"""Time to retry: a network file system may show a new file late."""


class RankFacts(TypedDict):
    """The run directory as one rank sees it, and its software versions. nonce, plan: hashes. ahead_s: added by rank 0,
    see `_compare_clocks`."""

    rank: int
    host: str
    run: str
    is_there: bool
    writable: bool
    nonce: str
    plan: str
    versions: dict[str, str]
    ahead_s: NotRequired[tuple[float, float]]


class Verdict(TypedDict):
    """The error that all ranks report."""

    what: str
    where: str
    remedy: str
    exit_code: int


def check_ranks(run: RunDir, ranks: Ranks, attempt: int) -> Rendezvous:
    """Compare run directory, versions, plan, clocks and disk space with the other ranks.

    Raises InputError for what the user can fix, RunFault if a rank does not connect or the network fails; both name
    rank and host. Returns within START_TIMEOUT_S, or the process exits. The caller starts the process group through the
    store of the returned rendezvous, then completes it.
    """

    def give_up(error: RunFault) -> None:
        record_end(run, attempt, error)
        terminate(error, stacks=False)

    rendezvous = Rendezvous(ranks, attempt, give_up)
    verdict = _check(rendezvous, run, attempt) if ranks.is_first else _report_facts(rendezvous, run)
    if verdict is not None:
        raise _as_error(verdict)
    return rendezvous


def _check(rendezvous: Rendezvous, run: RunDir, attempt: int) -> Verdict | None:
    nonce = secrets.token_hex(16)
    path = run.nonce
    written = _try(lambda: path.write_text(nonce, encoding="ascii")) is None
    try:
        rendezvous.set("ready", {})
        fault_point("preflight.ready")
        facts = [_facts(run, 0, nonce)]
        for rank in range(1, rendezvous.ranks.world_size):
            _await_all(rendezvous)
            facts.append(rendezvous.get(f"facts/{rank}", f"rank {rank}"))
        _compare_clocks(rendezvous, facts)
        verdict = _fault(run, facts, nonce, written)
    finally:
        if written:
            path.unlink(missing_ok=True)
    rendezvous.set("verdict", verdict)
    until = time.monotonic() + 3.0  # the store ends with this process: all ranks should read the verdict first
    others = [f"acknowledged/{rank}" for rank in range(1, rendezvous.ranks.world_size)]
    while verdict is not None and not all(map(rendezvous.has, others)) and time.monotonic() < until:
        time.sleep(0.05)
    return verdict


def _compare_clocks(rendezvous: Rendezvous, facts: Sequence[RankFacts]) -> None:
    """Add `ahead_s` to the facts of every other rank: bounds of how far its clock is ahead of rank 0's, in seconds.

    A rank reads its clock between rank 0's request and rank 0's receipt of the answer, however busy the machine is; all
    ranks are connected by now.
    """
    requested = _clock()
    rendezvous.set("clock", {})
    for other in facts[1:]:
        rank = other["rank"]
        clock = rendezvous.get(f"clock/{rank}", f"the clock of rank {rank}")
        other["ahead_s"] = (clock - _clock(), clock - requested)


def _ahead_s(facts: RankFacts) -> tuple[float, float]:
    return facts.get("ahead_s", (0.0, 0.0))


def _clock() -> float:
    return time.time() + float(fault_value("preflight.clock", "0"))


def _await_all(rendezvous: Rendezvous) -> None:
    """Wait until every rank has published its facts, or the deadline has passed."""
    others = range(1, rendezvous.ranks.world_size)
    while missing := [rank for rank in others if not rendezvous.has(f"facts/{rank}")]:
        names = ", ".join(map(str, missing))
        rendezvous.set_waiting_for(f"rank {names}" if len(missing) == 1 else f"ranks {names}")
        if rendezvous.timed_out:
            return
        time.sleep(0.05)


def _report_facts(rendezvous: Rendezvous, run: RunDir) -> Verdict | None:
    rank = rendezvous.ranks.rank
    rendezvous.get("ready", "rank 0 to start")
    until = time.monotonic() + _READ_AGAIN_S
    while not run.nonce.is_file() and run.root.is_dir() and time.monotonic() < until:
        time.sleep(0.1)
    nonce: list[str] = []
    _try(lambda: nonce.append(run.nonce.read_text(encoding="ascii")))
    rendezvous.set(f"facts/{rank}", _facts(run, rank, nonce[0] if nonce else ""))
    rendezvous.get("clock", "the clock request of rank 0")
    rendezvous.set(f"clock/{rank}", _clock())
    verdict = rendezvous.get("verdict", "the verdict of rank 0")
    rendezvous.set(f"acknowledged/{rank}", {})
    return verdict


def _facts(run: RunDir, rank: int, nonce: str) -> RankFacts:
    plan_hash, plan = _plan_of(run)
    return {
        "rank": rank,
        "host": socket.gethostname(),
        "run": str(run.root),
        "is_there": run.root.is_dir(),
        "writable": os.access(run.root, os.W_OK | os.X_OK),
        "nonce": hashlib.sha256(f"{nonce} {rank}".encode()).hexdigest(),
        "plan": fault_value("preflight.plan", plan_hash),
        "versions": _versions(plan),
    }


def _plan_of(run: RunDir) -> tuple[str, Plan | None]:
    try:
        content = run.plan.read_bytes()
    except OSError:
        return "", None
    try:
        return hashlib.sha256(content).hexdigest(), read_plan(run.plan)
    except ValueError:  # written by another version: the comparison of versions reports it
        return hashlib.sha256(content).hexdigest(), None


def _versions(plan: Plan | None) -> dict[str, str]:
    """Versions of all packages that affect numbers or files; optional packages only if the plan uses them."""
    names = [*_PACKAGES]
    if plan is not None and plan.parallelism.zero_stage:
        names.append("deepspeed")
    if plan is not None and plan.recipe.method.kind == "qlora":
        names.append("bitsandbytes")
    versions = {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "tunesmith": __version__}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {name: fault_value(f"preflight.{name}", version) for name, version in versions.items()}


def _fault(run: RunDir, facts: Sequence[RankFacts], nonce: str, written: bool) -> Verdict | None:
    """The first fault, most severe first; None if there is none."""
    first, others = facts[0], facts[1:]
    if not written or not first["plan"]:
        what = "does not hold a plan" if written else "cannot be written"
        return _verdict(f"the run directory {what}", [first], "give every rank the directory that the launcher created")
    different = [f for f in others if f["nonce"] != hashlib.sha256(f"{nonce} {f['rank']}".encode()).hexdigest()]
    if different:
        how = "is missing" if not different[0]["is_there"] else "is another directory of the same name"
        if different[0]["run"] != first["run"] and different[0]["is_there"]:
            how = f"is not {first['run']} of rank 0"
        return _verdict(
            f"the run directory is not shared by all hosts: {different[0]['run']} {how} on {_names(different)}",
            [first, *different],
            "put the run directory (--run-dir) on a file system that every host mounts under the same path",
        )
    for name in first["versions"]:
        if different := [f for f in others if f["versions"].get(name) != first["versions"][name]]:
            version = different[0]["versions"].get(name)
            return _verdict(
                f"{name} {version} at {_names(different)}, but {first['versions'][name]} at {_names([first])}",
                [first, *different],
                f"install the same {name} on every host",
            )
    if different := [f for f in others if f["plan"] != first["plan"]]:
        return _verdict(
            f"plan.json differs: {_names(different)} reads another file than {_names([first])}",
            [first, *different],
            "start again; if it still differs, the file system serves stale files",
        )
    if different := [f for f in others if _ahead_s(f)[0] > CLOCK_SLACK_S or _ahead_s(f)[1] < -CLOCK_SLACK_S]:
        seconds = sum(_ahead_s(different[0])) / 2
        direction = "ahead of" if seconds > 0 else "behind"
        return _verdict(
            f"the clock at {_names(different)} is {abs(seconds):.0f} s {direction} rank 0's",
            [first, *different],
            f"synchronize the clocks (NTP); the limit is {CLOCK_SLACK_S:.0f} s",
        )
    if different := [f for f in facts if not f["writable"]]:
        return _verdict(
            f"{_names(different)} cannot write to the run directory", different, "grant it write permission"
        )
    return _disk_fault(run, first)


def _disk_fault(run: RunDir, first: RankFacts) -> Verdict | None:
    """Require disk space for the checkpoints still to be written; existing ones will be replaced by later ones."""
    plan = read_plan(run.plan)
    required = plan.recipe.checkpoint.keep_last + 1 + (plan.recipe.evaluation.early_stopping is not None)
    existing = sum(step_of(path) is not None for path in run.checkpoints.glob("step-*"))
    need = min(required - existing, 1 + plan.batch.total_steps // plan.batch.checkpoint_every_steps)
    need_bytes = max(1, need) * plan.compute.checkpoint_bytes
    free = shutil.disk_usage(run.root).free
    if need_bytes <= int(fault_value("preflight.free_bytes", str(free))):
        return None
    return _verdict(
        f"not enough disk space for the checkpoints: {need_bytes >> 20} MiB needed, {free >> 20} MiB free",
        [first],
        "free space, choose another disk with --run-dir, or lower checkpoint.keep_last",
    )


def _verdict(what: str, ranks: Sequence[RankFacts], remedy: str) -> Verdict:
    where = "; ".join(f"rank {f['rank']} on {f['host']}: {f['run']}" for f in ranks[:8])
    return {"what": what, "where": where, "remedy": remedy, "exit_code": int(ExitCode.BAD_INPUT)}


def _names(facts: Sequence[RankFacts]) -> str:
    names = [f"rank {fact['rank']} on {fact['host']}" for fact in facts]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _as_error(verdict: Verdict) -> TunesmithError:
    return InputError(verdict["what"], where=verdict["where"], remedy=verdict["remedy"])


def _try(action: Callable[[], object]) -> OSError | None:
    try:
        action()
    except OSError as error:
        return error
    return None

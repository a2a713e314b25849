"""Whether the prepared rows, receipts and ledger of a run are as they were written: every byte is read."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.data.index.pages import HASHES, REMEDY, read_page_hashes
from tunesmith.errors import RunFault
from tunesmith.rundir.commit import MANIFEST, hash_file, read_manifest, verify
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import StartEvent, StepEvent
from tunesmith.rundir.ledger import check_ledger
from tunesmith.rundir.paths import RunDir


@dataclass
class Integrity:
    """num_files: those that are as written. faults: place and what is wrong. unverified: what has no hash, or is
    missing and can be prepared again."""

    num_files: int = 0
    faults: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)


def check_data(plan: Plan) -> Integrity:
    """Verify the prepared rows: token indexes, receipts and summaries in the cache."""
    result = Integrity()
    done: set[Path] = set()
    for index in _indexes(plan):
        prepared = index.parent
        is_committed = (prepared / MANIFEST).is_file() or prepared.name == plan.data.fingerprint
        checked = prepared if is_committed else index
        if index.is_dir() and not (index / HASHES).is_file():
            result.unverified.append(f"{index} has no hashes of its pages ({HASHES}): an earlier version wrote it")
        if checked in done:
            continue
        done.add(checked)
        if not checked.is_dir():
            result.unverified.append(f"{checked} is missing")
        elif fault := verify(checked) if is_committed else _page_fault(index):
            result.faults.append(f"{checked}: {fault}")
        else:
            result.num_files += sum(path.is_file() for path in checked.rglob("*"))
    return result


def require_intact(plan: Plan) -> None:
    """Raise RunFault if the prepared rows were damaged. Rows that are missing are prepared again when needed."""
    if faults := check_data(plan).faults:
        place, _, fault = faults[0].partition(": ")
        raise RunFault(f"the prepared data was damaged: {fault}", where=place, remedy=REMEDY)


def check_receipts(run: RunDir, plan: Plan) -> Integrity:
    """Verify the receipts in the run directory: with their manifest; those of earlier versions with the prepared rows
    that they were copied from."""
    result = Integrity()
    if not run.receipts.is_dir():
        result.faults.append(f"{run.receipts} is missing")
    elif (run.receipts / MANIFEST).is_file():
        if fault := verify(run.receipts):
            result.faults.append(f"{run.receipts}: {fault}")
        else:
            result.num_files = len(read_manifest(run.receipts)["files"])
    elif recorded := _recorded_receipts(plan):
        for name, digest in recorded.items():
            if not (run.receipts / name).is_file():
                result.faults.append(f"{run.receipts}: {name} is missing")
            elif hash_file(run.receipts / name)[0] != digest:
                result.faults.append(f"{run.receipts}: {name} does not match its hash: it was modified")
            else:
                result.num_files += 1
    else:
        result.unverified.append(f"{run.receipts} has no hashes ({MANIFEST})")
    return result


def record_faults(run: RunDir, plan: Plan) -> list[str]:
    """Return what is wrong with receipts and ledger."""
    return check_receipts(run, plan).faults + check_ledger(run, most_ranks(run)).faults


def most_ranks(run: RunDir) -> int:
    """Largest number of ranks of any attempt that has completed a step: each has a ledger file by then. An elastic run
    may have started with fewer ranks than the plan has."""
    most = ranks = 0
    for event in read_events(run.events, StartEvent, StepEvent):
        if isinstance(event, StartEvent):
            ranks = event.world_size or 0
        else:
            most = max(most, ranks)
    return most


def _indexes(plan: Plan) -> Iterator[Path]:
    for split in (plan.data.train, plan.data.validation, plan.data.retain):
        if split is not None:
            yield Path(split.index)


def _page_fault(index: Path) -> str | None:
    try:
        hashes = read_page_hashes(index)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return hashes.fault(index) if hashes is not None else None


def _recorded_receipts(plan: Plan) -> dict[str, str]:
    """Hashes of the receipts in the prepared directory by name; empty if it is missing, or if rows of an earlier
    version were prepared again: their receipts have fewer fields."""
    prepared = Path(plan.data.train.index).parent
    if prepared.name != plan.data.fingerprint:
        return {}
    try:
        files = {Path(name): facts["sha256"] for name, facts in read_manifest(prepared)["files"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {path.name: digest for path, digest in files.items() if path.parent.name == "receipts"}

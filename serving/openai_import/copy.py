"""Files and jobs from the hosted API into a server's store.

It may be killed at any moment and run again: a file is there with all its bytes or not at all, a job with all its
events or not at all, and what is there is not fetched again.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import DataError, IntegrityError

from tunesmith.errors import TunesmithError
from tunesmith.rundir.commit import fault_point
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.openai_import.hosted_api import Refused, Remote, RemoteObject
from tunesmith.serving.openai_import.records import (
    checkpoint_row,
    event_rows,
    file_id,
    job_row,
    kept_id,
    model_row,
    whole,
)
from tunesmith.serving.store.jobs import FINAL
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import File

PURPOSES = ("fine-tune", "fine-tune-results")
MAX_NAME = 255
Say = Callable[[str], None]


@dataclass
class ImportSummary:
    """files, jobs: that were summary. known_*: were there already. skipped: what stays behind, and why; failed: what
    could not be summary, and why."""

    files: int = 0
    bytes: int = 0
    known_files: int = 0
    jobs: int = 0
    known_jobs: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Destination:
    """Where things are summary to. path: the server's home. store: None where nothing was ever kept there."""

    path: Path
    organization: str
    store: Store | None
    blobs: Blobs | None


def bring(remote: Remote, home: Destination, say: Say, *, dry_run: bool = False) -> ImportSummary:
    """Raises InputError and RunFault where the hosted API gives no lists; one thing that fails is in the summary."""
    summary = ImportSummary()
    for file in remote.files():
        if file.get("purpose") in PURPOSES:
            _bring_file(remote, home, file, summary, say, dry_run)
    for job in reversed(list(remote.jobs())):
        _bring_job(remote, home, job, summary, say, dry_run)
    return summary


def _bring_file(
    remote: Remote, home: Destination, file: RemoteObject, summary: ImportSummary, say: Say, dry_run: bool
) -> None:
    id, size = file_id(file["id"]), whole(file.get("bytes")) or 0
    assert id is not None
    words = f"{file['id']}  {size} bytes  {_name(file)}"
    known = home.store.files.get(id, also_expired=True) if home.store else None
    if known is not None:
        if known.organization != home.organization:
            summary.failed.append(f"{file['id']}: there is a file of this id, of the organization {known.organization}")
        elif known.bytes != size:
            summary.failed.append(f"{file['id']}: {known.bytes} bytes are here, the hosted API tells {size}")
        else:
            summary.known_files += 1
        return
    say(f"file {words}")
    if not dry_run:
        assert home.store is not None
        assert home.blobs is not None
        try:
            digest = _fetch(remote, home.blobs, str(file["id"]), id, size)
        except (Refused, ValueError) as error:
            summary.failed.append(f"{file['id']}: {error}")
            return
        fault_point("import.file")
        try:
            home.store.files.add(_file_row(file, id, size, digest, home.organization))
        except (DataError, IntegrityError) as error:
            summary.failed.append(f"{file['id']}: {_of_the_store(error)}")
            return
    summary.files += 1
    summary.bytes += size


def _fetch(remote: Remote, blobs: Blobs, remote_id: str, id: str, size: int) -> str:
    """The SHA-256 of the bytes, once all are here. Raises Refused, and ValueError where they are too many or few."""
    digest, come = hashlib.sha256(), 0
    with blobs.writing(id) as target:
        for piece in remote.content(remote_id):
            come += len(piece)
            if come > size:
                break
            digest.update(piece)
            target.write(piece)
            fault_point("import.piece")
        if come != size:
            raise ValueError(f"{'more than ' if come > size else ''}{min(come, size)} bytes came, {size} were told")
    return digest.hexdigest()


def _of_the_store(error: DataError | IntegrityError) -> str:
    """Another import may run at once, and a thing may hold what a database cannot."""
    return f"the store does not take it: {str(error.orig).splitlines()[0]}"


def _file_row(file: RemoteObject, id: str, size: int, digest: str, organization: str) -> File:
    """Without an end: the copy is the user's own."""
    return File(
        id=id,
        organization=organization,
        created_at=whole(file.get("created_at")) or int(time.time()),
        bytes=size,
        filename=_name(file),
        purpose=str(file["purpose"]),
        status="processed",
        expires_at=None,
        blob=id,
        sha256=digest,
    )


def _name(file: RemoteObject) -> str:
    name = "".join(letter for letter in str(file.get("filename") or "") if letter.isprintable())
    return name.replace("\\", "/").rsplit("/", 1)[-1][:MAX_NAME] or "unnamed"


def _bring_job(
    remote: Remote, home: Destination, job: RemoteObject, summary: ImportSummary, say: Say, dry_run: bool
) -> None:
    id = kept_id("ftjob-", str(job["id"]))
    if home.store is not None and (known := home.store.jobs.get(id)) is not None:
        if known.organization == home.organization:
            summary.known_jobs += 1
        else:
            summary.failed.append(f"{job['id']}: there is a job of this id, of the organization {known.organization}")
        return
    if job.get("status") not in FINAL:
        summary.skipped.append(f"{job['id']} is {job.get('status')} there: run this again when it has ended")
        return
    say(f"job {job['id']}  {job['status']}  {job.get('fine_tuned_model') or job.get('model')}")
    if not dry_run:
        try:
            _keep_job(remote, home, job)
        except (Refused, ValueError, KeyError, TypeError) as error:
            summary.failed.append(f"{job['id']}: {error}")
            return
        except (DataError, IntegrityError) as error:
            summary.failed.append(f"{job['id']}: {_of_the_store(error)}")
            return
        except TunesmithError as error:
            summary.failed.append(f"{job['id']}: {error.what}")
            return
    summary.jobs += 1


def _keep_job(remote: Remote, home: Destination, job: RemoteObject) -> None:
    """All of it in one transaction, once all of it is here."""
    assert home.store is not None
    store, host = home.store, remote.host
    row = job_row(job, home.organization, host)
    events = event_rows(list(remote.events(str(job["id"]))), row, host, time.time())
    checkpoints = [checkpoint_row(each, row) for each in remote.checkpoints(str(job["id"]))]
    with store.begin() as session:
        store.jobs.create(row, session)
        store.events.append_all(row.id, events, session)
        fault_point("import.job")
        for name in ([row.fine_tuned_model] if row.fine_tuned_model else []) + [each.name for each in checkpoints]:
            store.models.add(model_row(name, row, host, home.path), session)
        for checkpoint in reversed(checkpoints):
            store.checkpoints.add(checkpoint, session)

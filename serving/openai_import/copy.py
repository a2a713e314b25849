"""Import of files and jobs from the hosted API into a server's store.

The import can be interrupted at any time and run again: files and jobs are stored completely or not at all, and stored
ones are not downloaded again.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import DataError, IntegrityError

from tunesmith.errors import TunesmithError
from tunesmith.rundir.faults import fault_point
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.openai_import.hosted_api import HostedApi, RemoteObject, RequestFailed
from tunesmith.serving.openai_import.records import (
    as_int,
    checkpoint_row,
    event_rows,
    file_id,
    job_row,
    kept_id,
    model_row,
)
from tunesmith.serving.store.jobs import FINAL
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import File

PURPOSES = ("fine-tune", "fine-tune-results")
MAX_NAME_LENGTH = 255
Log = Callable[[str], None]


@dataclass
class ImportSummary:
    """files, jobs: numbers copied. known_*: numbers already present. skipped, failed: messages with the reason."""

    files: int = 0
    bytes: int = 0
    known_files: int = 0
    jobs: int = 0
    known_jobs: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Destination:
    """The destination server. path: its home directory. store: None in a dry run without an existing store."""

    path: Path
    organization: str
    store: Store | None
    blobs: Blobs | None


def import_all(remote: HostedApi, home: Destination, log: Log, *, dry_run: bool = False) -> ImportSummary:
    """Copy all files and jobs. Raises InputError or RunFault if the hosted API cannot be listed; a single file or job
    that fails is reported in the summary."""
    summary = ImportSummary()
    for file in remote.files():
        if file.get("purpose") in PURPOSES:
            _import_file(remote, home, file, summary, log, dry_run)
    for job in reversed(list(remote.jobs())):
        _import_job(remote, home, job, summary, log, dry_run)
    return summary


def _import_file(
    remote: HostedApi, home: Destination, file: RemoteObject, summary: ImportSummary, log: Log, dry_run: bool
) -> None:
    id, size = file_id(file["id"]), as_int(file.get("bytes")) or 0
    assert id is not None
    description = f"{file['id']}  {size:,} bytes  {_name(file)}"
    known = home.store.files.get(id, also_expired=True) if home.store else None
    if known is not None:
        if known.organization != home.organization:
            summary.failed.append(f"{file['id']}: the id belongs to a file of the organization {known.organization}")
        elif known.bytes != size:
            summary.failed.append(
                f"{file['id']}: the stored file has {known.bytes:,} bytes, the hosted API reports {size:,}"
            )
        else:
            summary.known_files += 1
        return
    log(f"file {description}")
    if not dry_run:
        assert home.store is not None
        assert home.blobs is not None
        try:
            digest = _fetch(remote, home.blobs, str(file["id"]), id, size)
        except (RequestFailed, ValueError) as error:
            summary.failed.append(f"{file['id']}: {error}")
            return
        fault_point("import.file")
        try:
            home.store.files.add(_file_row(file, id, size, digest, home.organization))
        except (DataError, IntegrityError) as error:
            summary.failed.append(f"{file['id']}: {_store_error(error)}")
            return
    summary.files += 1
    summary.bytes += size


def _fetch(remote: HostedApi, blobs: Blobs, remote_id: str, id: str, size: int) -> str:
    """Download a file. Returns its SHA-256. Raises RequestFailed, and ValueError if the size is wrong."""
    digest, received = hashlib.sha256(), 0
    with blobs.writing(id) as target:
        for piece in remote.content(remote_id):
            received += len(piece)
            if received > size:
                break
            digest.update(piece)
            target.write(piece)
            fault_point("import.piece")
        if received != size:
            count = f"{'more than ' if received > size else ''}{min(received, size):,}"
            raise ValueError(f"received {count} bytes, expected {size:,}")
    return digest.hexdigest()


def _store_error(error: DataError | IntegrityError) -> str:
    """Another import may run concurrently, and an object may contain values that the database rejects."""
    return f"the store rejected it: {str(error.orig).splitlines()[0]}"


def _file_row(file: RemoteObject, id: str, size: int, digest: str, organization: str) -> File:
    """The stored copy, which does not expire."""
    return File(
        id=id,
        organization=organization,
        created_at=as_int(file.get("created_at")) or int(time.time()),
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
    return name.replace("\\", "/").rsplit("/", 1)[-1][:MAX_NAME_LENGTH] or "unnamed"


def _import_job(
    remote: HostedApi, home: Destination, job: RemoteObject, summary: ImportSummary, log: Log, dry_run: bool
) -> None:
    id = kept_id("ftjob-", str(job["id"]))
    if home.store is not None and (known := home.store.jobs.get(id)) is not None:
        if known.organization == home.organization:
            summary.known_jobs += 1
        else:
            summary.failed.append(f"{job['id']}: the id belongs to a job of the organization {known.organization}")
        return
    if job.get("status") not in FINAL:
        summary.skipped.append(
            f"{job['id']} is {job.get('status')} on the hosted API: run the import again after it has finished"
        )
        return
    log(f"job {job['id']}  {job['status']}  {job.get('fine_tuned_model') or job.get('model')}")
    if not dry_run:
        try:
            _store_job(remote, home, job)
        except (RequestFailed, ValueError, KeyError, TypeError) as error:
            summary.failed.append(f"{job['id']}: {error}")
            return
        except (DataError, IntegrityError) as error:
            summary.failed.append(f"{job['id']}: {_store_error(error)}")
            return
        except TunesmithError as error:
            summary.failed.append(f"{job['id']}: {error.what}")
            return
    summary.jobs += 1


def _store_job(remote: HostedApi, home: Destination, job: RemoteObject) -> None:
    """Fetch a job completely, then store it in one transaction."""
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

"""Copies of a job's inputs in its directory, so that the originals may be deleted while it waits or trains."""

import os
import shutil
from pathlib import Path

from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.validation import Files
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Job


def copy_files(store: Store, blobs: Blobs, job: Job, directory: Path) -> Files:
    """Copy the uploaded files; existing copies are kept. Raises JobFault if a file was deleted."""
    directory.mkdir(parents=True, exist_ok=True)
    paths: list[Path | None] = []
    for name, file_id in (("training_file", job.training_file), ("validation_file", job.validation_file)):
        path = directory / f"{name.removesuffix('_file')}.jsonl" if file_id else None
        if path is not None and file_id and not path.is_file():
            _copy(store, blobs, job, file_id, path, name)
        paths.append(path)
    assert paths[0] is not None
    return Files(paths[0], paths[1])


def _copy(store: Store, blobs: Blobs, job: Job, file_id: str, path: Path, name: str) -> None:
    row = store.files.get(file_id, job.organization, also_expired=True)
    try:
        if row is None:
            raise FileNotFoundError(file_id)
        blobs.local_copy(row.blob, path)
    except FileNotFoundError as error:
        raise JobFault(f"invalid_{name}", f"The file {file_id} was deleted before the job started.", name) from error


def copy_adapter(adapter: Path, directory: Path) -> Path:
    """Copy the adapter from which training continues: if it is a checkpoint of a running job, it may be deleted before
    this job starts. Raises JobFault if it was deleted already."""
    target = directory / "earlier"
    if not target.is_dir():
        temporary = directory / f".earlier.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            shutil.copytree(adapter, temporary)
        except (FileNotFoundError, shutil.Error) as error:
            raise JobFault("model_not_found", "The model was deleted before the job started.", "model") from error
        temporary.rename(target)
    return target

"""The commit protocol: a directory is whole, or it is not there.

Files are written into `<name>.tmp.<attempt>` and synced, the manifest (bytes and SHA-256 of every file) is written last
and synced, the directory is renamed to its final name, the parent is synced. A directory counts if and only if its
manifest verifies. Stages are named so that faults can be injected at each (see `fault_point`).
"""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.rundir.atomic import fsync_directory

MANIFEST = "manifest.json"
SCHEMA = 1
_CHUNK_BYTES = 4 << 20


def fault_point(stage: str) -> None:
    """Where a test may kill the process: TUNESMITH_FAULT="<stage>[:<nth time>]=<kill|term|raise>". Free when unset."""
    wanted = os.environ.get("TUNESMITH_FAULT")
    if not wanted:
        return
    name, _, action = wanted.partition("=")
    name, _, nth = name.partition(":")
    if name != stage:
        return
    _fault_counts[stage] = _fault_counts.get(stage, 0) + 1
    if _fault_counts[stage] != int(nth or 1):
        return
    if action == "raise":
        raise OSError(28, "No space left on device (injected)", stage)
    os.kill(os.getpid(), signal.SIGTERM if action == "term" else signal.SIGKILL)


_fault_counts: dict[str, int] = {}


@contextmanager
def committed_directory(final: Path, attempt: int, **facts: Any) -> Iterator[Path]:
    """Write into the yielded temporary directory; on leaving the block it becomes `final`, whole and durable.

    facts are stored in the manifest. An existing `final` is replaced only after the new one is complete.
    When the block raises, the temporary directory is removed and `final` is untouched.
    """
    temporary = final.with_name(f"{final.name}.tmp.{attempt}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fault_point("commit.begin")
        yield temporary
        fault_point("commit.files")
        seal(temporary, **facts)
        fault_point("commit.manifest")
        if final.exists():
            replaced = final.with_name(f"{final.name}.old.{attempt}")
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(final, replaced)
            os.rename(temporary, final)
            fsync_directory(final.parent)
            shutil.rmtree(replaced)
        else:
            os.rename(temporary, final)
            fault_point("commit.rename")
            fsync_directory(final.parent)
        fault_point("commit.done")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def seal(directory: Path, **facts: Any) -> None:
    """Sync every file of a directory, then write its manifest and sync that."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST):
        digest, num_bytes = hash_file(path, sync=True)
        files[path.relative_to(directory).as_posix()] = {"num_bytes": num_bytes, "sha256": digest}
    for folder in (p for p in directory.rglob("*") if p.is_dir()):
        fsync_directory(folder)
    content = json.dumps({"schema": SCHEMA, **facts, "files": files}, indent=1, sort_keys=True)
    with open(directory / MANIFEST, "w", encoding="utf-8") as file:
        file.write(content + "\n")
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(directory)


def verify(directory: Path) -> str | None:
    """What is wrong with a committed directory, naming the file; None where every byte is as it was written."""
    try:
        manifest = read_manifest(directory)
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST} is missing or damaged ({error})"
    if manifest["schema"] > SCHEMA:
        return f"it was written by a newer version (schema {manifest['schema']}, this version reads up to {SCHEMA})"
    present = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} - {MANIFEST}
    expected = manifest["files"]
    if missing := sorted(expected.keys() - present):
        return f"{missing[0]} is missing"
    if extra := sorted(present - expected.keys()):
        return f"{extra[0]} does not belong to it"
    for name, facts in expected.items():
        if (size := (directory / name).stat().st_size) != facts["num_bytes"]:
            return f"{name} has {size} bytes instead of {facts['num_bytes']}"
    for name, facts in expected.items():
        if hash_file(directory / name)[0] != facts["sha256"]:
            return f"{name} does not match its hash: bytes were changed"
    return None


def read_manifest(directory: Path) -> dict[str, Any]:
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not isinstance(manifest["files"], dict) or not isinstance(manifest["schema"], int):
        raise ValueError("not a manifest")
    return manifest


def hash_file(path: Path, sync: bool = False) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes of a file; with `sync` its content is made durable first."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size

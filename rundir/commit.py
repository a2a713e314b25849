"""The commit protocol: a directory is whole, or it is not there.

Files are written into `<name>.tmp.<attempt>` and synced, the manifest (bytes and SHA-256 of every file, and of itself)
is written last and synced, the directory is renamed to its final name, the parent is synced. A directory counts if and
only if its manifest verifies. Stages are named so that faults can be injected at each (see `fault_point`).
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tunesmith.rundir.atomic import fsync_directory

MANIFEST = "manifest.json"
SCHEMA = 1
_CHUNK_BYTES = 4 << 20
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def fault_point(stage: str) -> None:
    """Where a test may harm the process: TUNESMITH_FAULT="<stage>[:<nth time>]=<kill|term|stop|hang|raise>".

    stop: SIGSTOP to the process. hang: the call returns when the file that TUNESMITH_FAULT_UNTIL names is there, or
    never; a file of that name with `.reached` appended shows that the process hangs. Free when unset.
    """
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
    if action == "hang":
        until = os.environ.get("TUNESMITH_FAULT_UNTIL", "")
        if until:
            Path(f"{until}.reached").touch()
        while not until or not os.path.exists(until):
            time.sleep(0.05)
        return
    os.kill(os.getpid(), _SIGNALS[action])


_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
_fault_counts: dict[str, int] = {}


def fault_value(stage: str, value: str) -> str:
    """`value`, or what a test puts in its place: TUNESMITH_FAULT="<stage>=<value>". Free when unset."""
    wanted = os.environ.get("TUNESMITH_FAULT")
    if wanted and wanted.startswith(f"{stage}="):
        return wanted.partition("=")[2]
    return value


@contextmanager
def committed_directory(
    final: Path,
    attempt: int,
    *,
    allowed: Callable[[], None] = lambda: None,
    known: Mapping[str, tuple[str, int]] = MappingProxyType({}),
    **facts: Any,
) -> Iterator[Path]:
    """Write into the yielded temporary directory; on leaving the block it becomes `final`, whole and durable.

    attempt tells writers of the same directory apart: two that may run at once need different numbers.
    allowed: called last before the directory gets its name; what it raises keeps that from happening.
    known: SHA-256 and bytes of files that the block has made durable and hashed itself, by name (see `HashedFile`).
    facts are stored in the manifest. An existing `final` is replaced only after the new one is complete, in one step:
    at every moment the name holds the old one or the new one. When the block raises, the temporary directory is removed
    and `final` is untouched.
    """
    temporary = final.with_name(f"{final.name}.tmp.{attempt}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fault_point("commit.begin")
        yield temporary
        fault_point("commit.files")
        seal(temporary, known, **facts)
        fault_point("commit.manifest")
        allowed()
        _publish(temporary, final, attempt)
        fault_point("commit.done")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def adopt(directory: Path, final: Path, attempt: int) -> str | None:
    """Give a directory that came from elsewhere its final name, where it verifies; otherwise it is removed.

    Returns what is wrong with it, None where nothing is.
    """
    if (fault := verify(directory)) is not None:
        shutil.rmtree(directory, ignore_errors=True)
        return fault
    for path in directory.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    fsync_directory(directory)
    _publish(directory, final, attempt)
    return None


def _publish(temporary: Path, final: Path, attempt: int) -> None:
    """Give a sealed directory its final name, in place of what bears it; durable on return."""
    try:
        os.rename(temporary, final)
        replaced = None
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        replaced = _exchange(temporary, final, attempt)
    fault_point("commit.rename")
    fsync_directory(final.parent)
    if replaced is not None:
        _remove(replaced)


def _exchange(temporary: Path, final: Path, attempt: int) -> Path:
    """Swap the two names atomically; where the replaced one lies now.

    A file system that cannot swap (NFS) gets two renames: a crash between them leaves the old one under another name.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(temporary), os.fsencode(final)
    if renameat2 is not None and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return temporary
    replaced = final.with_name(f"{final.name}.old.{attempt}")
    _remove(replaced)
    os.rename(final, replaced)
    try:
        os.rename(temporary, final)
    except OSError:
        os.rename(replaced, final)
        raise
    return replaced


def _remove(path: Path) -> None:
    """Delete what was replaced, a directory or a file; what resists stays: it is garbage, not a fault."""
    shutil.rmtree(path, ignore_errors=True)
    if path.is_file() or path.is_symlink():
        path.unlink(missing_ok=True)


def seal(directory: Path, known: Mapping[str, tuple[str, int]] = MappingProxyType({}), **facts: Any) -> None:
    """Sync every file of a directory, then write its manifest and sync that. `facts` go into the manifest.

    known: SHA-256 and bytes of files that are durable already, by name.
    """
    if reserved := facts.keys() & {"schema", "files", "sha256"}:
        raise ValueError(f"the manifest keeps {', '.join(sorted(reserved))} for itself")
    files = {}
    for name in sorted(_file_names(directory)):
        digest, num_bytes = known[name] if name in known else hash_file(directory / name, sync=True)
        files[name] = {"num_bytes": num_bytes, "sha256": digest}
    for folder in (p for p in directory.rglob("*") if p.is_dir()):
        fsync_directory(folder)
    manifest = json.loads(json.dumps({"schema": SCHEMA, **facts, "files": files}))
    manifest["sha256"] = _hash_of_manifest(manifest)
    with open(directory / MANIFEST, "w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(directory)


def verify(directory: Path) -> str | None:
    """What is wrong with a committed directory, naming the file; None where every byte is as it was written."""
    try:
        manifest = read_manifest(directory)
    except (OSError, ValueError, KeyError, RecursionError) as error:
        return f"{MANIFEST} is missing or damaged ({error})"
    if manifest["schema"] > SCHEMA:
        return f"it was written by a newer version (schema {manifest['schema']}, this version reads up to {SCHEMA})"
    if manifest.get("sha256") != _hash_of_manifest(manifest):
        return f"{MANIFEST} does not match its own hash: bytes were changed"
    present, expected = _file_names(directory), manifest["files"]
    if missing := sorted(expected.keys() - present):
        return f"{missing[0]} is missing"
    if extra := sorted(present - expected.keys()):
        return f"{extra[0]} does not belong to it"
    for name, facts in expected.items():  # sizes first: a truncated file is found without reading the large ones
        if (size := (directory / name).stat().st_size) != facts["num_bytes"]:
            return f"{name} has {size} bytes instead of {facts['num_bytes']}"
    for name, facts in expected.items():
        try:
            if hash_file(directory / name)[0] != facts["sha256"]:
                return f"{name} does not match its hash: bytes were changed"
        except OSError as error:  # a bad sector, a file that may not be read
            return f"{name} cannot be read ({error.strerror})"
    return None


def read_manifest(directory: Path) -> dict[str, Any]:
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not isinstance(manifest["files"], dict) or type(manifest["schema"]) is not int:
        raise ValueError("not a manifest")
    return manifest


def _file_names(directory: Path) -> set[str]:
    """Every file below a directory, as a relative name, but its manifest."""
    return {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} - {MANIFEST}


def _hash_of_manifest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content but for this hash, so that a changed byte in the manifest is seen as well."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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

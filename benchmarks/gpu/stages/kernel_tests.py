"""The interpreted kernel tests of the suite, on this device: every Triton kernel against fp64, values and gradients."""

import os
import re
import subprocess
import sys

from benchmarks.gpu.models import ROOT
from benchmarks.gpu.record import Record
from benchmarks.gpu.setting import Setting

TESTS = ROOT / "tests" / "kernels" / "interpreted"
SHORT = ("test_weights.py", "test_adamw")
"""File and tests of the short rehearsal: the suite runs all of them with the interpreter anyway."""


def run(setting: Setting, record: Record) -> None:
    variables = {} if setting.rehearsal else {"TUNESMITH_KERNEL_DEVICE": setting.device}
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    total = 0
    for file in sorted(TESTS.glob(SHORT[0] if setting.short else "test_*.py")):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", str(file)]
        command += ["-k", SHORT[1]] if setting.short else []
        ended = subprocess.run(
            command, env={**os.environ, **variables, "PYTHONPATH": path}, capture_output=True, text=True, cwd=ROOT
        )
        print(ended.stdout[-4000:], ended.stderr[-2000:])
        counts = {
            name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|error|skipped)", ended.stdout)
        }
        record.figure(file.name, counts)
        total += counts.get("passed", 0)
        failed = counts.get("failed", 0) + counts.get("error", 0)
        record.check(f"{file.name}: failed", failed, "equals", 0)
        if counts.get("skipped"):  # the comparison with bitsandbytes, where that is not installed
            record.leave_out(f"{file.name}: {counts['skipped']} tests", "skipped by the suite, see the log")
        record.check(f"{file.name}: exit code", ended.returncode, "equals", 0)
    record.check("tests passed", total, "at least", 3 if setting.short else 100)

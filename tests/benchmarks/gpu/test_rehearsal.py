"""Every stage of the GPU scripts runs on a CPU: the same code with tiny sizes, and gloo instead of NCCL."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.gpu.acceptance import STAGES as ONE
from benchmarks.gpu.command import ROOT
from benchmarks.gpu.several import STAGES as SEVERAL

SHORT_CPU_S = {"acceptance.py": 135, "several.py": 45}
"""Limits of the short rehearsals, 180 CPU seconds together."""
STAGES = {"acceptance.py": ONE, "several.py": SEVERAL}


def rehearse(script, tmp_path, *options):
    """Run a rehearsal and return the results of its stages."""
    results = tmp_path / "results.json"
    command = [sys.executable, ROOT / "benchmarks" / "gpu" / script, "--rehearse", "--results", results, *options]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    stages = json.loads(results.read_text(encoding="utf-8"))["stages"]
    logs = "\n".join(stage["log"] for stage in stages.values() if "log" in stage)
    assert ended.returncode == 0, ended.stdout + ended.stderr + logs
    return stages


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("script", list(STAGES))
def test_short_rehearsal(script, tmp_path):
    stages = rehearse(script, tmp_path, "--short")
    assert {name: stage["status"] for name, stage in stages.items()} == {
        stage.name: "passed" for stage in STAGES[script] if not stage.repeats
    }
    assert sum(stage["cpu_s"] for stage in stages.values()) <= SHORT_CPU_S[script]
    assert not [goal for stage in stages.values() for goal in stage["goals"] if not goal["holds"]]


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("script", list(STAGES))
def test_whole_rehearsal(script, tmp_path):
    stages = rehearse(script, tmp_path)
    expected = {stage.name: "skipped" if stage.name == "sanitizer" else "passed" for stage in STAGES[script]}
    assert {name: stage["status"] for name, stage in stages.items()} == expected

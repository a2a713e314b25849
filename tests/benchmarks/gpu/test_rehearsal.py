"""Every stage of the GPU scripts runs on a CPU: the same code with tiny sizes, and gloo instead of NCCL."""

import json
import os
import resource
import subprocess
import sys

import pytest

from benchmarks.gpu.acceptance import STAGES as ONE
from benchmarks.gpu.command import ROOT
from benchmarks.gpu.several import STAGES as SEVERAL

SHORT_CPU_S = {"acceptance.py": 135, "several.py": 45}
"""Limits of the short rehearsals, 180 CPU seconds together, on a machine that imports torch, transformers and peft in
IMPORT_CPU_S; most of their time is such imports, and grows with it."""
IMPORT_CPU_S = 5.0
STAGES = {"acceptance.py": ONE, "several.py": SEVERAL}


def rehearse(script, tmp_path, *options, **variables):
    """Run a rehearsal and return the results of its stages. variables: of its environment."""
    results = tmp_path / "results.json"
    command = [sys.executable, ROOT / "benchmarks" / "gpu" / script, "--rehearse", "--results", results, *options]
    environment = {**os.environ, "TMPDIR": str(tmp_path), **variables}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    stages = json.loads(results.read_text(encoding="utf-8"))["stages"]
    logs = "\n".join(stage["log"] for stage in stages.values() if "log" in stage)
    assert ended.returncode == 0, ended.stdout + ended.stderr + logs
    return stages


@pytest.fixture(scope="module")
def slowness() -> float:
    """CPU seconds of this machine for one of the machine of SHORT_CPU_S; at least 1."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import torch, transformers, peft"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return max(1.0, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / IMPORT_CPU_S)


def require_short_stages(script, stages):
    assert {name: stage["status"] for name, stage in stages.items()} == {
        stage.name: "passed" for stage in STAGES[script] if not stage.repeats
    }
    assert not [goal for stage in stages.values() for goal in stage["goals"] if not goal["holds"]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("script", list(STAGES))
def test_short_rehearsal(script, tmp_path, warm_pool):
    require_short_stages(script, rehearse(script, tmp_path, "--short", **warm_pool.environment()))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("script", list(STAGES))
def test_short_rehearsal_in_processes_of_its_own_takes_limited_time(script, tmp_path, slowness):
    stages = rehearse(script, tmp_path, "--short")
    require_short_stages(script, stages)
    assert sum(stage["cpu_s"] for stage in stages.values()) <= slowness * SHORT_CPU_S[script]


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("script", list(STAGES))
def test_whole_rehearsal(script, tmp_path):
    stages = rehearse(script, tmp_path)
    expected = {stage.name: "skipped" if stage.name == "sanitizer" else "passed" for stage in STAGES[script]}
    assert {name: stage["status"] for name, stage in stages.items()} == expected

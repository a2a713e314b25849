"""The node health script itself, in healthy and unhealthy environments. nvidia-smi is a fake: no GPU is needed."""

import os
import subprocess
import time

import pytest

from tunesmith.launcher.slurm.script import SCRIPTS


@pytest.fixture
def health(tmp_path):
    """health(body of a fake nvidia-smi, **environment) -> output of the script."""
    (tmp_path / "run" / "jobs").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()

    def check(smi: str | None = None, **environment: object) -> str:
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        if smi is not None:
            (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
            (programs / "nvidia-smi").chmod(0o755)
        variables = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURMD_NODENAME": "node7",
            "SLURM_JOB_ID": 1,
            "TUNESMITH_RUN_DIR": tmp_path / "run",
            "TUNESMITH_SCRATCH": tmp_path / "scratch",
            "TUNESMITH_CLOCK": int(time.time()),
            **environment,
        }
        ended = subprocess.run(
            ["bash", SCRIPTS / "node_health.sh"],
            env={name: str(value) for name, value in variables.items()},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        assert not list((tmp_path / "run" / "jobs").iterdir())
        return ended.stdout.strip()

    return check


def test_a_healthy_node_is_reported_as_healthy(health):
    assert health(TUNESMITH_INTERFACE="lo", TUNESMITH_MIN_SCRATCH_GIB=0) == "healthy node7"
    assert health("printf '0, 0\\n1, [N/A]\\n'", TUNESMITH_GPUS=2) == "healthy node7"


@pytest.mark.parametrize(
    ("smi", "expected"),
    [
        (None, "nvidia-smi not found"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "nvidia-smi failed: Failed to"),
        ("printf '0, 0\\n'", "only 1 of 2 GPUs are visible"),
        ("printf '0, 0\\n1, 3\\n'", "GPU 1 has 3 uncorrected memory errors"),
        ("printf '0, 0\\n1, [GPU is lost]\\n'", "GPU 1 reports: [GPU is lost]"),
    ],
)
def test_a_bad_gpu_is_reported(health, smi, expected):
    assert health(smi, TUNESMITH_GPUS=2).startswith(f"unhealthy node7: {expected}")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"TUNESMITH_SCRATCH": "/nowhere/at/all"}, "/nowhere/at/all does not exist"),
        ({"TUNESMITH_MIN_SCRATCH_GIB": 10**9}, "GiB free on"),
        ({"TUNESMITH_RUN_DIR": "/nowhere"}, "/nowhere is not writable"),
        ({"TUNESMITH_INTERFACE": "ib99"}, "the interface ib99 does not exist"),
    ],
)
def test_the_cause_of_an_unhealthy_node_is_reported(health, changes, expected):
    output = health(**changes)
    assert output.startswith("unhealthy node7: ")
    assert expected in output


@pytest.mark.parametrize("ahead_s", [7200, -7200])
def test_a_clock_difference_is_reported(health, ahead_s):
    output = health(TUNESMITH_CLOCK=int(time.time()) - ahead_s, TUNESMITH_MAX_CLOCK_OFFSET_S=60)
    first_digit = "7" if ahead_s > 0 else "-7"
    assert output.startswith(f"unhealthy node7: its clock differs from the first node's by {first_digit}")

"""Is a node fit: the script itself, with what it looks at made good or bad. GPUs are played: there are none here."""

import os
import subprocess
import time

import pytest

from tunesmith.launcher.slurm.script import SCRIPTS


@pytest.fixture
def health(tmp_path):
    """health(gpus=nvidia-smi's answer, **environment) -> what the script prints."""
    (tmp_path / "run" / "jobs").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()

    def check(smi: str | None = None, **environment: object) -> str:
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        if smi is not None:
            (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
            (programs / "nvidia-smi").chmod(0o755)
        given = {
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
            env={name: str(value) for name, value in given.items()},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        assert not list((tmp_path / "run" / "jobs").iterdir())
        return ended.stdout.strip()

    return check


def test_a_fit_node_says_so(health):
    assert health(TUNESMITH_INTERFACE="lo", TUNESMITH_MIN_SCRATCH_GIB=0) == "healthy node7"
    assert health("printf '0, 0\\n1, [N/A]\\n'", TUNESMITH_GPUS=2) == "healthy node7"


@pytest.mark.parametrize(
    ("smi", "words"),
    [
        (None, "nvidia-smi is not there"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "nvidia-smi failed: Failed to"),
        ("printf '0, 0\\n'", "1 of 2 GPUs can be seen"),
        ("printf '0, 0\\n1, 3\\n'", "GPU 1 has 3 uncorrected memory errors"),
        ("printf '0, 0\\n1, [GPU is lost]\\n'", "GPU 1 is in error: [GPU is lost]"),
    ],
)
def test_a_bad_gpu_is_named(health, smi, words):
    assert health(smi, TUNESMITH_GPUS=2).startswith(f"unhealthy node7: {words}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"TUNESMITH_SCRATCH": "/nowhere/at/all"}, "/nowhere/at/all is not there"),
        ({"TUNESMITH_MIN_SCRATCH_GIB": 10**9}, "GiB are free"),
        ({"TUNESMITH_RUN_DIR": "/nowhere"}, "/nowhere cannot be written"),
        ({"TUNESMITH_INTERFACE": "ib99"}, "the interface ib99 is not there"),
    ],
)
def test_what_is_wrong_is_named(health, changes, words):
    told = health(**changes)
    assert told.startswith("unhealthy node7: ")
    assert words in told


@pytest.mark.parametrize("ahead_s", [7200, -7200])
def test_a_clock_that_differs_is_named(health, ahead_s):
    told = health(TUNESMITH_CLOCK=int(time.time()) - ahead_s, TUNESMITH_MAX_CLOCK_OFFSET_S=60)
    assert told.startswith("unhealthy node7: its clock is " + ("7" if ahead_s > 0 else "-7"))
    assert "seconds from the first node's" in told

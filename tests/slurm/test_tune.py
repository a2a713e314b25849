"""`tunesmith tune` on a real Slurm cluster: every trial is a job, and a pruned one ends without being requeued."""

import json
import subprocess
import sys

import pytest
import yaml

pytest.importorskip("optuna", reason="the tune extra is not installed")

from tests.slurm.test_jobs import COMMAND, SITE, Project, project
from tests.waiting import LIMIT_S, wait_for
from tunesmith.rundir.status import read_status
from tunesmith.rundir.study import StudyDir

__all__ = ["project"]


@pytest.mark.soak
def test_trials_are_jobs_and_a_bad_one_is_pruned(cluster, project):
    (project.directory / "tune.yaml").write_text(
        "search: {optimization.learning_rate: [1e-2, 1e-7]}\npruner: {kind: median, min_trials: 1}\n"
    )
    release = project.directory / "release"
    command = ("tune", "recipe.yaml", "--set", "evaluation.every_steps=4", "--set", "resources.nodes=1", "--json")
    place = ("--on", "slurm", "--launcher", "torchrun", "--cluster", waiting_site(project))
    study = StudyDir(project.directory / "runs" / "tiny-tune")
    running = subprocess.Popen(
        [str(COMMAND), *command, *place],
        cwd=project.directory,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(
        lambda: "asked to stop" in project.logs(str(study.trial(2).root)),
        explain=lambda: project.logs(str(study.trial(2).root)),
        processes=[running],
    )
    release.touch()
    output, errors = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 0, output + errors
    result = json.loads(output)
    assert [trial["outcome"] for trial in result["trials"]] == ["done", "pruned"], errors
    assert result["best"] == 1
    assert read_status(study.trial(2).status).phase == "preempted"
    assert not cluster.call("squeue", "-h")
    assert all((study.trial(number).jobs / "train.sbatch").is_file() for number in (1, 2))
    # Complete: no job is submitted again, and the back end is that of the study.
    assert json.loads(project.run(*command).splitlines()[0]) == result


def waiting_site(project: Project) -> str:
    """Write a cluster file whose interpreter makes the second trial wait in its ninth step for the file `release`."""
    python = project.directory / "waiting-python"
    fault = f"TUNESMITH_FAULT=step.forward:9=hang TUNESMITH_FAULT_UNTIL={project.directory / 'release'}"
    case = f'case "$*" in *trial-0002*) export {fault};; esac'
    python.write_text(f'#!/bin/bash\n{case}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (project.directory / "tune-cluster.yaml").write_text(yaml.safe_dump({**SITE, "python": str(python)}))
    return "tune-cluster.yaml"

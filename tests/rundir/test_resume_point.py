"""A remedy promises a checkpoint only if there is one."""

from pathlib import Path

import pytest

from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.resume_point import resume_point

ROOT = Path(__file__).resolve().parents[2]
PROMISES = ("resumes from the newest", "continues from the newest", 'continues from its latest checkpoint"')


def test_the_newest_checkpoint_is_named_or_that_there_is_none(tmp_path):
    run = RunDir(tmp_path / "run")
    assert resume_point(run) == "the start, since there is no checkpoint yet"
    run.create()
    (run.checkpoints / "step-00000007.tmp.1").mkdir(parents=True)
    assert resume_point(run) == "the start, since there is no checkpoint yet"
    for step in (10, 9):
        run.checkpoint(step).mkdir(parents=True)
    assert resume_point(run) == "the checkpoint of step 10"


@pytest.mark.parametrize("package", ["cli", "evaluation", "launcher", "report", "rundir", "serving", "training"])
def test_no_remedy_promises_a_checkpoint_unseen(package):
    for path in (ROOT / package).rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not any(promise in line for promise in PROMISES), f"{path}:{number}"
